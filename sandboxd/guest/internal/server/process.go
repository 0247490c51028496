package server

import (
	"encoding/json"
	"net/http"
	"time"

	"sandlot.dev/guest/internal/output"
	"sandlot.dev/guest/internal/process"
	"sandlot.dev/guest/internal/wire"
)

const (
	maxWaitSeconds   = 3600
	keepaliveSeconds = 15
	leastKeepalive   = 0.05
	mostKeepalive    = 3600
)

func (s *Server) start(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	q := newQuery(r.URL.RawQuery, "follow", "keepalive_seconds")
	follow, keepalive := q.flag("follow"), keepaliveOf(q)
	if q.problem != nil {
		return q.problem
	}
	var spec wire.Spec
	if problem := decode(w, r, &spec); problem != nil {
		return problem
	}
	record, joined, problem := s.table.Start(spec)
	if problem != nil {
		return problem
	}
	status := http.StatusCreated
	if joined {
		status = http.StatusOK
	}
	if !follow {
		return answer(w, status, record.Sketch())
	}
	reader, problem := record.Ring().Open(0)
	if problem != nil {
		return problem
	}
	defer reader.Close()
	stream(w, r, reader, streaming{status: status, first: attached(record), follow: true, keepalive: keepalive})
	return nil
}

// attached renders the frame a followed start begins with.
func attached(record *process.Record) []byte {
	payload, _ := json.Marshal(record.Sketch())
	return wire.AppendFrame(nil, wire.KindAttached, 0, time.Now().UnixMicro(), payload)
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	q := newQuery(r.URL.RawQuery, "state", "tag")
	state := q.values.Get("state")
	if state != "" && state != "running" && state != "ended" {
		q.refuse("state is running or ended")
	}
	if q.problem != nil {
		return q.problem
	}
	return answer(w, http.StatusOK, wire.ProcessList{Items: s.table.List(state, q.text("tag"))})
}

func (s *Server) show(w http.ResponseWriter, r *http.Request, id string) *wire.Problem {
	q := newQuery(r.URL.RawQuery, "wait_seconds")
	wait := q.seconds("wait_seconds", 0, 0, maxWaitSeconds)
	if q.problem != nil {
		return q.problem
	}
	record, problem := s.table.Find(id)
	if problem != nil {
		return problem
	}
	if wait > 0 {
		over := time.NewTimer(time.Duration(wait * float64(time.Second)))
		defer over.Stop()
		select {
		case <-record.Done():
		case <-over.C:
		case <-r.Context().Done():
		}
	}
	return answer(w, http.StatusOK, record.View())
}

func (s *Server) output(w http.ResponseWriter, r *http.Request, id string) *wire.Problem {
	q := newQuery(r.URL.RawQuery, "after", "tail_bytes", "follow", "keepalive_seconds")
	after, tail := q.count("after"), q.count("tail_bytes")
	follow, keepalive := q.flag("follow"), keepaliveOf(q)
	if after != nil && tail != nil {
		q.refuse("give at most one of after and tail_bytes")
	}
	if q.problem != nil {
		return q.problem
	}
	record, problem := s.table.Find(id)
	if problem != nil {
		return problem
	}
	reader, problem := open(record.Ring(), after, tail)
	if problem != nil {
		return problem
	}
	defer reader.Close()
	stream(w, r, reader, streaming{status: http.StatusOK, follow: follow, keepalive: keepalive})
	return nil
}

func open(ring *output.Ring, after, tail *int64) (*output.Reader, *wire.Problem) {
	switch {
	case tail != nil:
		return ring.OpenTail(uint64(*tail))
	case after != nil:
		return ring.Open(uint64(*after))
	}
	return ring.Open(0)
}

func keepaliveOf(q *query) time.Duration {
	return time.Duration(q.seconds("keepalive_seconds", keepaliveSeconds, leastKeepalive, mostKeepalive) * float64(time.Second))
}

func (s *Server) head(w http.ResponseWriter, _ *http.Request, id string) *wire.Problem {
	record, problem := s.table.Find(id)
	if problem != nil {
		return problem
	}
	w.Header().Set("Content-Type", wire.FramesMediaType)
	_, _ = w.Write(record.Ring().Head())
	return nil
}

func (s *Server) stdin(w http.ResponseWriter, r *http.Request, id string) *wire.Problem {
	q := newQuery(r.URL.RawQuery, "offset", "close")
	offset, end := q.count("offset"), q.flag("close")
	if q.problem != nil {
		return q.problem
	}
	record, problem := s.table.Find(id)
	if problem != nil {
		return problem
	}
	result, problem := record.WriteStdin(r.Body, offset, end)
	if problem != nil {
		return problem
	}
	return answer(w, http.StatusOK, result)
}

func (s *Server) signal(w http.ResponseWriter, r *http.Request, id string) *wire.Problem {
	var request wire.Signal
	if problem := decode(w, r, &request); problem != nil {
		return problem
	}
	record, problem := s.table.Find(id)
	if problem == nil {
		problem = record.Signal(request, r.Header.Get("Idempotency-Key"))
	}
	if problem != nil {
		return problem
	}
	return empty(w)
}

func (s *Server) resize(w http.ResponseWriter, r *http.Request, id string) *wire.Problem {
	var size wire.Size
	if problem := decode(w, r, &size); problem != nil {
		return problem
	}
	if !process.SizeOK(size) {
		return wire.Fail("invalid_request", "rows and cols are from 1 to 1000")
	}
	record, problem := s.table.Find(id)
	if problem == nil {
		problem = record.Resize(size)
	}
	if problem != nil {
		return problem
	}
	return empty(w)
}
