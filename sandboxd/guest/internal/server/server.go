// Package server speaks the guest protocol over HTTP. What a call means is decided elsewhere.
package server

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/journal"
	"sandlot.dev/guest/internal/process"
	"sandlot.dev/guest/internal/wire"
)

const (
	// net/http allows 4 KiB more than it is told.
	maxHeaderBytes = 16*1024 - 4096
	maxBodyBytes   = 16 << 20
	maxRestBytes   = 1 << 30
	bodyPatience   = 30 * time.Second
	headerPatience = 30 * time.Second
	idlePatience   = 10 * time.Minute
)

// BackstopStatus is the exit status of a guest that ended itself.
const BackstopStatus = 75

// Settings of one guest.
type Settings struct {
	Version     string
	TokenSHA256 string
	Backstop    time.Duration
	Port        int
	// Native: not the init of a sandbox, so nothing outside its own trees is touched.
	Native bool
}

// Server is the whole guest, seen from the wire.
type Server struct {
	settings Settings
	table    *process.Table
	users    *identity.Directory
	bootID   string
	born     time.Time

	tokenHash   atomic.Pointer[[]byte]
	initialized sync.Mutex
	backstop    *time.Timer
	watches     atomic.Int32
	feeding     atomic.Pointer[chan struct{}]
}

// New makes a server over a table.
func New(settings Settings, table *process.Table, users *identity.Directory) (*Server, error) {
	s := &Server{settings: settings, table: table, users: users, born: time.Now(), bootID: bootID()}
	if err := s.setToken(settings.TokenSHA256); err != nil {
		return nil, err
	}
	s.backstop = time.AfterFunc(time.Hour, func() { os.Exit(BackstopStatus) })
	s.backstop.Stop()
	if settings.Backstop > 0 {
		s.backstop.Reset(settings.Backstop)
	}
	return s, nil
}

func (s *Server) setToken(text string) error {
	hash, err := hex.DecodeString(text)
	if err != nil || len(hash) != sha256.Size {
		return errors.New("the token's hash is not 64 hexadecimal digits")
	}
	s.tokenHash.Store(&hash)
	return nil
}

// HTTP returns the server with its limits.
func (s *Server) HTTP() *http.Server {
	return &http.Server{
		Handler: s, MaxHeaderBytes: maxHeaderBytes, ReadHeaderTimeout: headerPatience, IdleTimeout: idlePatience,
		ErrorLog: quiet(),
	}
}

type call func(w http.ResponseWriter, r *http.Request, id string) *wire.Problem

// routes by method and path; `{id}` stands for one part.
func (s *Server) routes() map[string]map[string]call {
	return map[string]map[string]call{
		"health":                {"GET": s.health},
		"init":                  {"POST": s.init},
		"backstop":              {"POST": s.moveBackstop},
		"processes":             {"POST": s.start, "GET": s.list},
		"processes/{id}":        {"GET": s.show},
		"processes/{id}/output": {"GET": s.output},
		"processes/{id}/attach": {"GET": s.attach},
		"dial":                  {"GET": s.dial},
		"processes/{id}/head":   {"GET": s.head},
		"processes/{id}/stdin":  {"POST": s.stdin},
		"processes/{id}/signal": {"POST": s.signal},
		"processes/{id}/resize": {"POST": s.resize},
		"feed":                  {"POST": s.feed},
		"metrics":               {"GET": s.metrics},
		"files":                 {"GET": s.readFile, "PUT": s.writeFile, "PATCH": s.alter, "DELETE": s.remove},
		"files/stat":            {"GET": s.stat},
		"files/move":            {"POST": s.move},
		"directories":           {"GET": s.listDirectory, "PUT": s.makeDirectory},
		"archive":               {"GET": s.readArchive, "PUT": s.writeArchive},
		"watch":                 {"GET": s.watch},
		"ports":                 {"GET": s.ports},
		"shutdown":              {"POST": s.shutdown},
		"log":                   {"GET": s.log},
	}
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if cause := recover(); cause != nil {
			if cause == http.ErrAbortHandler { //nolint:errorlint // net/http panics with this very value
				panic(cause)
			}
			journal.Note("%s %s: %v", r.Method, r.URL.Path, cause)
			refuse(w, wire.Fail("internal", "the guest failed"))
		}
	}()
	if !s.allowed(r.Header.Get("Authorization")) {
		refuse(w, wire.Fail("unauthenticated", "the token is not this sandbox's"))
		return
	}
	serve, id, problem := s.route(r)
	if problem == nil {
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex()
		r.Body = &patient{ReadCloser: r.Body, control: control}
		problem = serve(w, r, id)
	}
	if problem != nil {
		refuse(w, problem)
		takeRest(w, r)
	}
}

// takeRest reads what is left of a refused body: a client that only writes would otherwise see a reset, not the answer.
func takeRest(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 && http.NewResponseController(w).Flush() == nil {
		_, _ = io.CopyN(io.Discard, r.Body, maxRestBytes)
	}
}

func (s *Server) route(r *http.Request) (serve call, id string, problem *wire.Problem) {
	rest, versioned := strings.CutPrefix(r.URL.Path, "/v1/")
	parts := strings.Split(rest, "/")
	if len(parts) > 1 && parts[0] == "processes" {
		id, parts[1] = parts[1], "{id}"
	}
	methods := s.routes()[strings.Join(parts, "/")]
	if !versioned || methods == nil {
		return nil, "", wire.Fail("route_not_found", "no route %q", r.URL.Path)
	}
	serve, known := methods[r.Method]
	if !known {
		return nil, "", wire.Fail("method_not_allowed", "%s is not for %q", r.Method, r.URL.Path)
	}
	return serve, id, nil
}

// allowed compares in constant time. The token counts as it is written, or as the bytes it spells.
func (s *Server) allowed(header string) bool {
	token, bearer := strings.CutPrefix(header, "Bearer ")
	want := *s.tokenHash.Load()
	written := sha256.Sum256([]byte(token))
	match := subtle.ConstantTimeCompare(written[:], want)
	if raw, err := hex.DecodeString(token); err == nil {
		spelled := sha256.Sum256(raw)
		match |= subtle.ConstantTimeCompare(spelled[:], want)
	}
	return bearer && match == 1
}

// patient gives up on a body that stops.
type patient struct {
	io.ReadCloser
	control *http.ResponseController
}

func (p *patient) Read(into []byte) (int, error) {
	_ = p.control.SetReadDeadline(time.Now().Add(bodyPatience))
	count, err := p.ReadCloser.Read(into)
	if err != nil {
		_ = p.control.SetReadDeadline(time.Time{})
	}
	return count, err
}

func decode(w http.ResponseWriter, r *http.Request, into any) *wire.Problem {
	body := http.MaxBytesReader(w, r.Body, maxBodyBytes)
	data, err := io.ReadAll(body)
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return wire.Fail("body_too_large", "the body is beyond %d bytes", maxBodyBytes).With("limit_bytes", maxBodyBytes)
	}
	if err != nil {
		return wire.Fail("malformed_request", "the body stopped: %v", err)
	}
	return wire.Decode(data, into)
}

func answer(w http.ResponseWriter, status int, value any) *wire.Problem {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return wire.Fail("internal", "%v", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes())
	return nil
}

func empty(w http.ResponseWriter) *wire.Problem {
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func refuse(w http.ResponseWriter, problem *wire.Problem) {
	if problem.Code == "internal" {
		journal.Note("internal: %s", problem.Message)
	}
	_ = answer(w, problem.Status(), problem)
}
