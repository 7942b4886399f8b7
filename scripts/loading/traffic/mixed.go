// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// One answer as it is kept: what was asked, under which nonce, and what came, byte for byte.
type kept struct {
	number  uint64
	stream  bool
	ended   bool // as HTTP says it must
	status  int
	request []byte
	body    []byte
}

// Asks for streams without a pause in a number of places, and for short answers at times that were set before,
// whatever the answers do. Every answer goes to a file; a summary to stdout.
type load struct {
	url, streamBody, shortBody string
	asker                      *http.Client
	number                     atomic.Uint64
	running                    sync.WaitGroup
	answers                    chan kept
	lock                       sync.Mutex
	statuses                   map[string]int
	errors                     map[string]int
	short, first, lag          []float64 // milliseconds
	seconds                    []int     // answers that came in each second
	begun                      time.Time
}

func mixed(arguments []string) error {
	flags := flag.NewFlagSet("mixed", flag.ExitOnError)
	url := flags.String("url", "", "where to ask")
	out := flags.String("out", "", "file for the answers")
	places := flags.Int("streams", 200, "streams at a time")
	chunks := flags.Int("chunks", 50, "chunks of a stream")
	pace := flags.Int("pace-ms", 200, "milliseconds between two chunks")
	rate := flags.Float64("rate", 2000, "short requests a second")
	lasting := flags.Float64("seconds", 60, "how long new requests are made")
	size := flags.Int("bytes", 500, "bytes of content of a short answer")
	patience := flags.Float64("patience", 60, "seconds before a request is given up")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	file, err := os.Create(*out)
	if err != nil {
		return err
	}
	asker := client(20000)
	asker.Timeout = time.Duration(*patience * float64(time.Second))
	run := &load{
		url: *url, asker: asker, answers: make(chan kept, 1024),
		statuses: map[string]int{}, errors: map[string]int{}, begun: time.Now(),
		streamBody: fmt.Sprintf(`{"model":"load","stream":true,"chunks":%d,"pace_ms":%d,"seed":"%%d",`+
			`"messages":[{"role":"user","content":"%s"}]}`, *chunks, *pace, strings.Repeat("go on ", 50)),
		shortBody: fmt.Sprintf(`{"model":"load","bytes":%d,"seed":"%%d","messages":[{"role":"user","content":"%s"}]}`,
			*size, strings.Repeat("briefly ", 40)),
	}
	written := make(chan error, 1)
	go func() { written <- keep(file, run.answers) }()
	ctx, stop := context.WithTimeout(context.Background(), time.Duration(*lasting*float64(time.Second)))
	defer stop()
	period := time.Duration(*chunks**pace) * time.Millisecond
	for place := range *places {
		run.running.Go(func() { run.place(ctx, period*time.Duration(place)/time.Duration(*places)) })
	}
	run.arrivals(ctx, *rate)
	run.running.Wait()
	close(run.answers)
	if err := <-written; err != nil {
		return err
	}
	return printJSON(map[string]any{
		"asked": run.number.Load(), "statuses": run.statuses, "errors": run.errors, "answers_by_second": run.seconds,
		"short_ms": quantiles(run.short), "first_chunk_ms": quantiles(run.first), "launch_lag_ms": quantiles(run.lag),
		"took": time.Since(run.begun).Seconds(),
	})
}

// One stream after the other until the time is over.
func (run *load) place(ctx context.Context, after time.Duration) {
	select {
	case <-time.After(after):
	case <-ctx.Done():
	}
	for ctx.Err() == nil {
		if !run.ask(true, time.Now()) {
			select { // whoever is refused does not ask again at once
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
}

// Short requests at even times.
func (run *load) arrivals(ctx context.Context, rate float64) {
	for count := 0; rate > 0; count++ {
		due := run.begun.Add(time.Duration(float64(count) / rate * float64(time.Second)))
		if wait := time.Until(due); wait > 0 {
			time.Sleep(wait)
		}
		if ctx.Err() != nil {
			return
		}
		run.running.Go(func() { run.ask(false, due) })
	}
	<-ctx.Done()
}

// Asks once; true if an answer came whole.
func (run *load) ask(stream bool, due time.Time) bool {
	lag := time.Since(due)
	number := run.number.Add(1)
	form := run.shortBody
	if stream {
		form = run.streamBody
	}
	one := kept{number: number, stream: stream, request: fmt.Appendf(nil, form, number)}
	request, _ := http.NewRequest("POST", run.url+path, strings.NewReader(string(one.request)))
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Quotary-Nonce", fmt.Sprintf("%032x", number))
	answer, err := run.asker.Do(request)
	var first time.Duration
	if err == nil {
		one.status = answer.StatusCode
		if stream {
			start := make([]byte, 1, 16*1024)
			if _, err = io.ReadFull(answer.Body, start); err == nil {
				first = time.Since(due)
				one.body = start
			}
		}
		if err == nil && !stream && answer.ContentLength > 0 {
			one.body = make([]byte, answer.ContentLength)
			_, err = io.ReadFull(answer.Body, one.body)
		} else if err == nil {
			var rest []byte
			rest, err = io.ReadAll(answer.Body)
			one.body = append(one.body, rest...)
		}
		answer.Body.Close()
	}
	one.ended = err == nil
	run.count(one, err, time.Since(due), first, lag)
	run.answers <- one
	return one.ended && one.status == 200
}

func (run *load) count(one kept, err error, whole, first, lag time.Duration) {
	run.lock.Lock()
	defer run.lock.Unlock()
	kind := "short"
	if one.stream {
		kind = "stream"
	}
	if err != nil {
		text := err.Error()
		if at := strings.LastIndex(text, ": "); at >= 0 {
			text = text[at+2:]
		}
		run.errors[kind+" "+text]++
		return
	}
	run.statuses[fmt.Sprintf("%s %d", kind, one.status)]++
	second := int(time.Since(run.begun).Seconds())
	for len(run.seconds) <= second {
		run.seconds = append(run.seconds, 0)
	}
	run.seconds[second]++
	if one.status != 200 {
		return
	}
	if one.stream {
		run.first = append(run.first, first.Seconds()*1000)
		return
	}
	run.short = append(run.short, whole.Seconds()*1000)
	run.lag = append(run.lag, lag.Seconds()*1000)
}

// Writes answers as they come: number, stream, ended, status, lengths, request, body; all big-endian.
func keep(file *os.File, answers <-chan kept) error {
	out := bufio.NewWriterSize(file, 1<<20)
	var failed error
	for one := range answers {
		head := binary.BigEndian.AppendUint64(nil, one.number)
		head = append(head, bit(one.stream), bit(one.ended))
		head = binary.BigEndian.AppendUint16(head, uint16(one.status))
		head = binary.BigEndian.AppendUint32(head, uint32(len(one.request)))
		head = binary.BigEndian.AppendUint32(head, uint32(len(one.body)))
		for _, part := range [][]byte{head, one.request, one.body} {
			if _, err := out.Write(part); err != nil && failed == nil {
				failed = err
			}
		}
		if len(answers) == 0 { // nobody waits, so whoever watches the file may see it grow
			if err := out.Flush(); err != nil && failed == nil {
				failed = err
			}
		}
	}
	if err := out.Flush(); failed == nil {
		failed = err
	}
	if err := file.Close(); failed == nil {
		failed = err
	}
	return failed
}

func bit(set bool) byte {
	if set {
		return 1
	}
	return 0
}

func quantiles(values []float64) map[string]float64 {
	if len(values) == 0 {
		return nil
	}
	slices.Sort(values)
	at := func(share float64) float64 { return values[int(share*float64(len(values)-1))] }
	return map[string]float64{"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": values[len(values)-1]}
}
