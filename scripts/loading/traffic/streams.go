// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

func client(connections int) *http.Client {
	return &http.Client{Transport: &http.Transport{
		MaxIdleConns: connections, MaxIdleConnsPerHost: connections, DisableCompression: true,
	}}
}

const path = "/v1/chat/completions"

// Begins streams at even times, so that a set number of them runs at a time whatever the others do, and says of each
// how long its first bytes took.
func streams(arguments []string) error {
	flags := flag.NewFlagSet("streams", flag.ExitOnError)
	url := flags.String("url", "", "where to ask")
	at := flags.Int("streams", 32, "streams at a time")
	count := flags.Int("count", 64, "streams in all")
	chunks := flags.Int("chunks", 200, "chunks of a stream")
	pace := flags.Int("pace-ms", 10, "milliseconds between two chunks")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	asker := client(*at)
	apart := time.Duration(*chunks**pace) * time.Millisecond / time.Duration(*at)
	first, failures := []float64{}, []string{}
	events := 0
	var lock sync.Mutex
	var running sync.WaitGroup
	begun := time.Now()
	for number := range *count {
		time.Sleep(time.Until(begun.Add(apart * time.Duration(number))))
		running.Go(func() {
			body := fmt.Sprintf(`{"model":"load","stream":true,"chunks":%d,"pace_ms":%d,"seed":"%d",`+
				`"messages":[{"role":"user","content":"go on"}]}`, *chunks, *pace, number)
			waited, seen, err := read(asker, *url, body)
			lock.Lock()
			defer lock.Unlock()
			events += seen
			if err != nil {
				failures = append(failures, err.Error())
				return
			}
			first = append(first, waited.Seconds()*1000)
		})
	}
	running.Wait()
	return printJSON(map[string]any{"first_ms": first, "events": events, "failures": failures})
}

// Reads one stream: how long its first bytes took, and how many events came.
func read(asker *http.Client, url, body string) (time.Duration, int, error) {
	begun := time.Now()
	answer, err := asker.Post(url+path, "application/json", bytes.NewReader([]byte(body)))
	if err != nil {
		return 0, 0, err
	}
	defer answer.Body.Close()
	piece := make([]byte, 32*1024)
	var waited time.Duration
	var last []byte
	events := 0
	for {
		size, err := answer.Body.Read(piece)
		if size > 0 {
			if waited == 0 {
				waited = time.Since(begun)
			}
			events += bytes.Count(piece[:size], []byte("\n\n"))
			last = append(last[:0], piece[max(0, size-16):size]...)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return waited, events, err
		}
	}
	if answer.StatusCode != 200 || !bytes.HasSuffix(last, []byte("[DONE]\n\n")) {
		return waited, events, fmt.Errorf("status %d, ends in %q", answer.StatusCode, last)
	}
	return waited, events, nil
}
