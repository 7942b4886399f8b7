// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// What a request asks of the upstream, in its JSON body beside what a model server would want.
type order struct {
	Stream bool   `json:"stream"`
	Seed   string `json:"seed"`    // comes back in the answer, so that no two answers are alike
	Chunks int    `json:"chunks"`  // of a stream
	PaceMS int    `json:"pace_ms"` // between two chunks
	Bytes  int    `json:"bytes"`   // of the content of an answer that is no stream
}

// A model server with OpenAI's API whose answers cost nothing to make.
func upstream(arguments []string) error {
	flags := flag.NewFlagSet("upstream", flag.ExitOnError)
	listen := flags.String("listen", "127.0.0.1:0", "address")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	if err := printJSON(map[string]string{"url": "http://" + listener.Addr().String()}); err != nil {
		return err
	}
	return http.Serve(listener, http.HandlerFunc(serve))
}

func serve(answer http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	var asked order
	if err != nil || json.Unmarshal(body, &asked) != nil {
		http.Error(answer, `{"error":{"message":"bad request","code":400}}`, http.StatusBadRequest)
		return
	}
	if asked.Stream {
		stream(answer, request, asked)
	} else {
		whole(answer, asked)
	}
}

const identity = `"id":"chatcmpl-%s","created":1700000000,"model":"load","system_fingerprint":"b1-load"`

func whole(answer http.ResponseWriter, asked order) {
	text := asked.Seed + strings.Repeat(" word", asked.Bytes/5)
	body := fmt.Sprintf(`{`+identity+`,"object":"chat.completion","choices":[{"index":0,"message":`+
		`{"role":"assistant","content":"%s"},"finish_reason":"stop"}],`+
		`"usage":{"prompt_tokens":20,"completion_tokens":200,"total_tokens":220}}`, asked.Seed, text)
	answer.Header().Set("Content-Type", "application/json")
	answer.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = io.WriteString(answer, body)
}

func stream(answer http.ResponseWriter, request *http.Request, asked order) {
	head := fmt.Sprintf(`data: {`+identity+`,"object":"chat.completion.chunk","choices":[{"index":0,"delta":`, asked.Seed)
	answer.Header().Set("Content-Type", "text/event-stream")
	flusher := answer.(http.Flusher)
	ticker := time.NewTicker(time.Duration(asked.PaceMS) * time.Millisecond)
	defer ticker.Stop()
	for number := range asked.Chunks {
		text := fmt.Sprintf(`%s{"content":" word%d"},"finish_reason":null}]}`+"\n\n", head, number)
		if number == asked.Chunks-1 {
			text = fmt.Sprintf(`%s{},"finish_reason":"stop"}]}`+"\n\ndata: [DONE]\n\n", head)
		}
		if _, err := io.WriteString(answer, text); err != nil {
			return
		}
		flusher.Flush()
		if number == asked.Chunks-1 {
			return
		}
		select {
		case <-ticker.C:
		case <-request.Context().Done():
			return
		}
	}
}
