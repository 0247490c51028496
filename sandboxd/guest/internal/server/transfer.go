package server

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	"sandlot.dev/guest/internal/files"
	"sandlot.dev/guest/internal/journal"
	"sandlot.dev/guest/internal/wire"
)

const (
	maxWatches   = 64
	maxGlobs     = 64
	maxDepth     = 64
	maxLimit     = 10000
	maxStrip     = 64
	ndjson       = "application/x-ndjson"
	octets       = "application/octet-stream"
	maxGlobBytes = 1024
)

// brokenOff ends an answer that has begun, so that nobody takes it for whole.
func brokenOff(what string, err error) {
	journal.Note("%s: broken off: %v", what, err)
	panic(http.ErrAbortHandler)
}

func (s *Server) readFile(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	t, q, problem := s.about(r, "first", "last", "suffix", "head")
	if problem != nil {
		return problem
	}
	head, part := q.flag("head"), part{q.count("first"), q.count("last"), q.count("suffix")}
	if q.problem != nil {
		return q.problem
	}
	reading, problem := files.Read(t.user, t.names, t.full)
	if problem != nil {
		return problem
	}
	defer reading.Close()
	if head {
		return answer(w, http.StatusOK, reading.Info)
	}
	header := w.Header()
	header.Set("ETag", reading.Info.ETag)
	if unless := r.Header.Get("If-None-Match"); unless != "" && files.Matches(unless, reading.Info.ETag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	offset, length, problem := part.of(reading.Size)
	if problem != nil {
		return problem
	}
	header.Set("Content-Type", octets)
	header.Set("Content-Length", strconv.FormatInt(length, 10))
	header.Set("Sandlot-Offset", strconv.FormatInt(offset, 10))
	header.Set("Sandlot-Size", strconv.FormatInt(reading.Size, 10))
	w.WriteHeader(http.StatusOK)
	if err := reading.Send(w, offset, length); err != nil {
		brokenOff(t.full, err)
	}
	return nil
}

// part is the piece of a file that is asked for: from first to last, or the last `suffix` bytes.
type part struct{ first, last, suffix *int64 }

func (p part) of(size int64) (offset, length int64, problem *wire.Problem) {
	switch {
	case p.suffix != nil && *p.suffix > 0 && size > 0:
		length = min(*p.suffix, size)
		return size - length, length, nil
	case p.suffix == nil && p.first == nil:
		return 0, size, nil
	case p.first != nil && *p.first < size && (p.last == nil || *p.last >= *p.first):
		end := size
		if p.last != nil && *p.last < size {
			end = *p.last + 1
		}
		return *p.first, end - *p.first, nil
	}
	return 0, 0, wire.Fail("range_not_satisfiable", "there are %d bytes", size).With("size_bytes", size)
}

func (s *Server) writeFile(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	t, q, problem := s.about(r, "mode", "parents", "append", "encoding")
	if problem != nil {
		return problem
	}
	wanted := files.Wanted{
		Mode: q.mode(), Parents: q.flag("parents"), Append: q.flag("append"),
		Match: r.Header.Get("If-Match"), NonMatch: r.Header.Get("If-None-Match"),
	}
	encoding := q.values.Get("encoding")
	if encoding != "" && encoding != "gzip" && encoding != "zstd" {
		q.refuse("encoding is gzip or zstd")
	}
	if q.problem != nil {
		return q.problem
	}
	upload, problem := files.Begin(t.user, t.full, wanted)
	if problem != nil {
		return problem
	}
	if problem := fill(upload, r.Body, encoding); problem != nil {
		upload.Abort()
		return problem
	}
	info, problem := upload.Commit(t.names)
	if problem != nil {
		return problem
	}
	return answer(w, created(!upload.Replaces), info)
}

func fill(upload *files.Upload, body io.Reader, encoding string) *wire.Problem {
	decoded, err := files.Decoded(encoding, body)
	if err == nil {
		defer decoded.Close()
		var problem *wire.Problem
		_, err, problem = upload.Fill(decoded)
		if problem != nil {
			return problem
		}
	}
	if err != nil {
		return wire.Fail("malformed_request", "the body stopped: %v", err)
	}
	return nil
}

func (s *Server) listDirectory(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	t, q, problem := s.about(r, "depth", "limit", "after", "after_base64")
	if problem != nil {
		return problem
	}
	listing := files.Listing{
		Depth: int(q.number("depth", 1, 1, maxDepth)), Limit: int(q.number("limit", 0, 0, maxLimit)), After: q.path("after"),
	}
	if q.problem != nil {
		return q.problem
	}
	lines := lines{w: w, buffered: bufio.NewWriterSize(w, 64*1024)}
	more, problem, err := files.List(t.user, t.names, t.full, listing, lines.begin, func(info wire.FileInfo) error {
		if err := r.Context().Err(); err != nil {
			return err
		}
		return lines.write(info)
	})
	if problem != nil {
		return problem
	}
	if err == nil {
		err = errors.Join(lines.write(wire.ListEnd{More: more}), lines.buffered.Flush())
	}
	if err != nil {
		brokenOff(t.full, err)
	}
	return nil
}

// lines is an answer of JSON objects, one a line.
type lines struct {
	w        http.ResponseWriter
	buffered *bufio.Writer
}

func (l lines) begin() {
	l.w.Header().Set("Content-Type", ndjson)
	l.w.WriteHeader(http.StatusOK)
}

func (l lines) write(value any) error {
	encoder := json.NewEncoder(l.buffered)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

func (l lines) flush() error {
	if err := l.buffered.Flush(); err != nil {
		return err
	}
	return http.NewResponseController(l.w).Flush()
}

func formatOf(q *query) string {
	format := q.values.Get("format")
	switch format {
	case "":
		return "tar"
	case "tar", "tar.gz", "tar.zst":
	default:
		q.refuse("format is tar, tar.gz or tar.zst")
	}
	return format
}

func (s *Server) readArchive(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	patterns, problem := takeRepeated(r, "exclude")
	if problem != nil {
		return problem
	}
	t, q, problem := s.about(r, "format")
	if problem != nil {
		return problem
	}
	format := formatOf(q)
	exclude, err := files.ParseGlobs(patterns)
	if err != nil {
		q.refuse("exclude: %v", err)
	}
	if q.problem != nil {
		return q.problem
	}
	buffered := bufio.NewWriterSize(w, 256*1024)
	problem, err = files.Pack(t.user, t.names, t.full, format, exclude, func() {
		w.Header().Set("Content-Type", octets)
		w.WriteHeader(http.StatusOK)
	}, buffered)
	if problem != nil {
		return problem
	}
	if err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		brokenOff(t.full, err)
	}
	return nil
}

// takeRepeated takes a parameter out of the query that may be there more than once.
func takeRepeated(r *http.Request, name string) ([]string, *wire.Problem) {
	values := r.URL.Query()
	found := values[name]
	if len(found) > maxGlobs {
		return nil, wire.Fail("invalid_request", "%s is there more than %d times", name, maxGlobs)
	}
	for _, each := range found {
		if len(each) > maxGlobBytes {
			return nil, wire.Fail("invalid_request", "%s is longer than %d bytes", name, maxGlobBytes)
		}
	}
	delete(values, name)
	r.URL.RawQuery = values.Encode()
	return found, nil
}

func (s *Server) writeArchive(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	t, q, problem := s.about(r, "format", "strip_components", "overwrite")
	if problem != nil {
		return problem
	}
	extraction := files.Extraction{
		Format: formatOf(q), Strip: int(q.number("strip_components", 0, 0, maxStrip)), Overwrite: q.flag("overwrite"),
	}
	if q.problem != nil {
		return q.problem
	}
	counted, bodyErr, problem := files.Unpack(r.Context(), t.user, t.full, extraction, r.Body)
	if bodyErr != nil {
		problem = wire.Fail("malformed_request", "the body stopped: %v", bodyErr)
	}
	if problem != nil {
		return problem
	}
	return answer(w, http.StatusOK, counted)
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	t, q, problem := s.about(r, "recursive")
	if problem != nil {
		return problem
	}
	recursive := q.flag("recursive")
	if q.problem != nil {
		return q.problem
	}
	defer s.watches.Add(-1)
	if s.watches.Add(1) > maxWatches {
		return wire.Fail("too_many_streams", "there are %d watches already", maxWatches).With("limit", maxWatches)
	}
	lines := lines{w: w, buffered: bufio.NewWriterSize(w, 64*1024)}
	return files.Watch(r.Context(), t.user, t.full, recursive, func() {
		lines.begin()
		_ = lines.write(wire.FileEvent{Kind: "ready"})
	}, func(event wire.FileEvent) error { return lines.write(event) }, lines.flush)
}
