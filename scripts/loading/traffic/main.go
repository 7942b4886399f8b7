// SPDX-License-Identifier: Apache-2.0

// Traffic for the benchmarks and the load test: a model server that answers at a set pace, and clients of it.
// Compiled, so that on a small machine the processor's time is the proxy's. Each mode prints JSON on stdout.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
)

func main() {
	modes := map[string]func([]string) error{"upstream": upstream, "streams": streams, "mixed": mixed}
	if len(os.Args) < 2 || modes[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: traffic upstream|streams|mixed [options]")
		os.Exit(2)
	}
	// On a small machine the time of a second processor, and of collecting garbage, would be taken from what is measured.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(800)
	if err := modes[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(4)
	}
}

func printJSON(value any) error {
	return json.NewEncoder(os.Stdout).Encode(value)
}
