package server

import (
	"net/http"
	"time"

	"sandlot.dev/guest/internal/metrics"
	"sandlot.dev/guest/internal/wire"
)

const (
	mostPortSeconds = 60
	mostPort        = 65535
	firstLook       = 10 * time.Millisecond
	lastLook        = 50 * time.Millisecond
)

// ports lists what listens, after waiting for the first at most that long. Nothing tells when a socket begins to listen, so
// somebody who waits has the kernel's tables read again and again, ever less often.
func (s *Server) ports(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	q := newQuery(r.URL.RawQuery, "port", "wait_seconds")
	given, wait := q.count("port"), q.seconds("wait_seconds", 0, 0, mostPortSeconds)
	wanted := 0
	if given != nil {
		wanted = int(min(*given, mostPort+1))
		if wanted < 1 || wanted > mostPort {
			q.refuse("port is a number from 1 to %d", mostPort)
		}
	}
	if q.problem != nil {
		return q.problem
	}
	over := time.Now().Add(inSeconds(wait))
	for pause := firstLook; !metrics.Listens(s.settings.Port, wanted) && time.Now().Before(over); pause = min(pause*3/2, lastLook) {
		timer := time.NewTimer(min(pause, time.Until(over)))
		select {
		case <-timer.C:
		case <-r.Context().Done():
			timer.Stop()
			return nil
		}
	}
	return answer(w, http.StatusOK, wire.PortList{Items: metrics.PortsAt(s.settings.Port, wanted)})
}
