package server

import (
	"net/http"
	"time"

	"sandlot.dev/guest/internal/metrics"
	"sandlot.dev/guest/internal/process"
	"sandlot.dev/guest/internal/wire"
)

const (
	mostFeedBytes   = 4 << 20
	mostFeedSeconds = 3600
	keptFeedBytes   = 16 << 10
)

// feed sends the newest output of all processes, at intervals, until nothing runs any more; or once. A later feed ends this one.
func (s *Server) feed(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	var request wire.Feed
	if problem := decode(w, r, &request); problem != nil {
		return problem
	}
	if problem := checkFeed(request); problem != nil {
		return problem
	}
	mine := make(chan struct{})
	if before := s.feeding.Swap(&mine); before != nil {
		close(*before)
	}
	feed := s.table.NewFeed(request.Positions, request.Ended, request.MostBytes)
	w.Header().Set("Content-Type", wire.FramesMediaType)
	w.WriteHeader(http.StatusOK)
	control := http.NewResponseController(w)
	var buffer []byte
	for {
		began := time.Now()
		buffer = feed.Take(buffer[:0], others)
		if len(buffer) > 0 {
			if _, err := w.Write(buffer); err != nil {
				return nil
			}
		}
		if !request.Follow || control.Flush() != nil {
			return nil
		}
		if cap(buffer) > keptFeedBytes {
			buffer = nil // what was loud may be silent for ever
		}
		if !s.pauseFeed(w, r, feed, request, mine, began) {
			return nil
		}
	}
}

// pauseFeed waits for news, and no shorter than the interval after the last batch; false when it is over.
func (s *Server) pauseFeed(w http.ResponseWriter, r *http.Request, feed *process.Feed, request wire.Feed, mine chan struct{}, began time.Time) bool {
	for {
		patience := inSeconds(request.KeepaliveSeconds)
		done := feed.Done()
		if done {
			patience = inSeconds(request.LingerSeconds)
		}
		over := time.NewTimer(patience)
		select {
		case <-s.table.Changed():
			over.Stop()
			return sleep(r, mine, inSeconds(request.IntervalSeconds)-time.Since(began))
		case <-r.Context().Done():
			over.Stop()
			return false
		case <-mine:
			over.Stop()
			return false
		case <-over.C:
		}
		if done && feed.Done() {
			return false
		}
		if _, err := w.Write(wire.AppendFrame(nil, wire.KindKeepalive, 0, 0, nil)); err != nil || http.NewResponseController(w).Flush() != nil {
			return false
		}
	}
}

func sleep(r *http.Request, mine chan struct{}, pause time.Duration) bool {
	if pause <= 0 {
		return true
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	case <-mine:
		return false
	}
}

func checkFeed(request wire.Feed) *wire.Problem {
	if request.MostBytes < 1 || request.MostBytes > mostFeedBytes {
		return wire.Fail("invalid_request", "most_bytes is a number from 1 to %d", mostFeedBytes)
	}
	for _, seconds := range []float64{request.IntervalSeconds, request.LingerSeconds, request.KeepaliveSeconds} {
		if !(seconds >= 0 && seconds <= mostFeedSeconds) {
			return wire.Fail("invalid_request", "seconds are a number from 0 to %d", mostFeedSeconds)
		}
	}
	if request.Follow && request.KeepaliveSeconds < leastKeepalive {
		return wire.Fail("invalid_request", "keepalive_seconds is at least %v", leastKeepalive)
	}
	return nil
}

func inSeconds(value float64) time.Duration { return time.Duration(value * float64(time.Second)) }

// others counts the processes beside this one.
func others() int { return max(metrics.Count()-1, 0) }
