package server

import (
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	crand "crypto/rand"

	"sandlot.dev/guest/internal/inittable"
	"sandlot.dev/guest/internal/journal"
	"sandlot.dev/guest/internal/metrics"
	"sandlot.dev/guest/internal/privilege"
	"sandlot.dev/guest/internal/wire"
)

const (
	protocolVersion = 1
	maxGraceSeconds = 600
	worstClockSkew  = time.Second
)

func (s *Server) health(w http.ResponseWriter, _ *http.Request, _ string) *wire.Problem {
	running, lastExit := s.table.Running()
	health := wire.Health{
		Version: s.settings.Version, Protocol: protocolVersion, Initialized: s.table.Station() != nil,
		ProcessesRunning: running, UptimeSeconds: time.Since(s.born).Seconds(),
	}
	if !lastExit.IsZero() {
		health.LastExitAtUS = lastExit.UnixMicro()
	}
	return answer(w, http.StatusOK, health)
}

func (s *Server) init(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	var init wire.Init
	if problem := decode(w, r, &init); problem != nil {
		return problem
	}
	s.initialized.Lock()
	defer s.initialized.Unlock()
	station, problem := inittable.NewStation(init, s.users)
	if problem != nil {
		return problem
	}
	if init.TokenSHA256 != nil {
		// Another's sandbox from now on, who finds nothing of what was tried before.
		if !s.table.Reset() {
			return wire.Fail("invalid_request", "processes are running")
		}
		if err := s.setToken(*init.TokenSHA256); err != nil {
			return wire.Fail("invalid_request", "%v", err)
		}
	}
	if !s.settings.Native {
		inittable.Settle(init, "")
		if err := privilege.Limit(init.MaxProcesses); err != nil {
			journal.Note("init: %v", err)
		}
	}
	s.setBackstop(init.BackstopSeconds)
	s.table.Settle(station)
	result := station.Result()
	result.Version, result.BootID = s.settings.Version, s.bootID
	if init.NowUS > 0 {
		skew := time.Since(time.UnixMicro(init.NowUS))
		result.ClockSkewSeconds = skew.Seconds()
		if skew.Abs() > worstClockSkew {
			journal.Note("init: the clock is off by %v", skew)
		}
	}
	return answer(w, http.StatusOK, result)
}

func (s *Server) moveBackstop(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	var backstop wire.Backstop
	if problem := decode(w, r, &backstop); problem != nil {
		return problem
	}
	s.setBackstop(backstop.Seconds)
	return empty(w)
}

func (s *Server) setBackstop(seconds *float64) {
	if seconds == nil {
		s.backstop.Stop()
		return
	}
	s.backstop.Reset(time.Duration(max(min(*seconds, 1e9), 0) * float64(time.Second)))
}

func (s *Server) metrics(w http.ResponseWriter, _ *http.Request, _ string) *wire.Problem {
	all := metrics.Read()
	all.Ports = metrics.Ports(s.settings.Port)
	return answer(w, http.StatusOK, all)
}

func (s *Server) shutdown(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	var request wire.Shutdown
	if problem := decode(w, r, &request); problem != nil {
		return problem
	}
	if !(request.GraceSeconds >= 0 && request.GraceSeconds <= maxGraceSeconds) {
		return wire.Fail("invalid_request", "grace_seconds is a number from 0 to %d", maxGraceSeconds)
	}
	grace := time.Duration(request.GraceSeconds * float64(time.Second))
	return answer(w, http.StatusOK, map[string]int{"ended": s.table.Shutdown(grace, !s.settings.Native)})
}

func (s *Server) log(w http.ResponseWriter, _ *http.Request, _ string) *wire.Problem {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write(journal.Text())
	return nil
}

func bootID() string {
	if text, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		return strings.TrimSpace(string(text))
	}
	return crand.Text()
}

type journalWriter struct{}

func (journalWriter) Write(line []byte) (int, error) {
	journal.Note("http: %s", strings.TrimSpace(string(line)))
	return len(line), nil
}

// quiet sends what net/http has to say into the journal: the guest's standard error is nowhere.
func quiet() *log.Logger { return log.New(journalWriter{}, "", 0) }
