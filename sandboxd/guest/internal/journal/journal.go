// Package journal is the guest's own log: a bounded ring of text in memory, never a file.
package journal

import (
	"bytes"
	"fmt"
	"sync"
	"time"
)

const (
	limitBytes = 256 * 1024
	lineBytes  = 4096
)

var (
	mu   sync.Mutex
	text []byte
)

// Note appends one line. It must never be given environment values, input or tokens.
func Note(format string, arguments ...any) {
	said := fmt.Sprintf(format, arguments...)
	line := time.Now().UTC().Format("2006-01-02T15:04:05.000Z ") + said[:min(len(said), lineBytes)] + "\n"
	mu.Lock()
	defer mu.Unlock()
	if len(text)+len(line) > limitBytes {
		rest := text[min(len(text), limitBytes/4):]
		if end := bytes.IndexByte(rest, '\n'); end >= 0 {
			rest = rest[end+1:]
		}
		text = append(make([]byte, 0, limitBytes), rest...)
	}
	text = append(text, line...)
}

// Text returns all that is kept.
func Text() []byte {
	mu.Lock()
	defer mu.Unlock()
	return bytes.Clone(text)
}
