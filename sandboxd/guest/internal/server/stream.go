package server

import (
	"net/http"
	"sync"
	"time"

	"sandlot.dev/guest/internal/output"
	"sandlot.dev/guest/internal/wire"
)

type streaming struct {
	status    int
	first     []byte
	follow    bool
	keepalive time.Duration
}

var streamBuffers = sync.Pool{New: func() any { buffer := make([]byte, 0, 16*1024); return &buffer }}

// stream writes frames until exit, or for one that does not follow until the present end. A client that went away ends it.
func stream(w http.ResponseWriter, r *http.Request, reader *output.Reader, options streaming) {
	w.Header().Set("Content-Type", wire.FramesMediaType)
	w.WriteHeader(options.status)
	held := streamBuffers.Get().(*[]byte)
	defer streamBuffers.Put(held)
	*held = append((*held)[:0], options.first...)
	control := http.NewResponseController(w)
	silence := time.NewTimer(options.keepalive)
	defer silence.Stop()
	for {
		frames, rest := reader.Take(*held)
		*held = frames[:0]
		if rest == output.Later && !options.follow {
			frames = wire.AppendFrame(frames, wire.KindKeepalive, reader.At(), 0, nil)
			rest = output.Ended
		}
		if len(frames) > 0 {
			if _, err := w.Write(frames); err != nil {
				return
			}
			reader.Sent()
		}
		switch rest {
		case output.Ended:
			return
		case output.Later:
			silence.Reset(options.keepalive)
			if err := control.Flush(); err != nil || !pause(w, r, reader, silence.C) {
				return
			}
		case output.More:
		}
	}
}

// pause waits for output; false when the client has gone.
func pause(w http.ResponseWriter, r *http.Request, reader *output.Reader, silence <-chan time.Time) bool {
	select {
	case <-reader.Ready():
		return true
	case <-r.Context().Done():
		return false
	case <-silence:
		_, err := w.Write(wire.AppendFrame(nil, wire.KindKeepalive, reader.At(), 0, nil))
		return err == nil && http.NewResponseController(w).Flush() == nil
	}
}
