// A stand-in for the guest agent in tests of the runtime: PID 1 that does what the file beside it says.
package main

import (
	"bytes"
	"os"
	"time"
)

func main() {
	mode, _ := os.ReadFile("/.sandlot/mode")
	switch string(bytes.TrimSpace(mode)) {
	case "exit":
		os.Exit(7)
	case "eat":
		var held [][]byte
		for {
			page := make([]byte, 1<<20)
			for i := range page {
				page[i] = 1
			}
			held = append(held, page)
		}
	case "look":
		report()
	}
	for {
		time.Sleep(time.Hour)
	}
}
