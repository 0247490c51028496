package server

import (
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"

	"sandlot.dev/guest/internal/files"
	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/wire"
)

// target is what a call on files is about: a path, whole, and the user who acts.
type target struct {
	user  identity.User
	full  string
	names *files.Names
	cwd   string
}

// about reads the target of a call and the parameters it has besides.
func (s *Server) about(r *http.Request, known ...string) (target, *query, *wire.Problem) {
	q := newQuery(r.URL.RawQuery, append(known, "path", "path_base64", "user", "cwd")...)
	name := q.path("path")
	if q.problem != nil {
		return target{}, q, q.problem
	}
	station := s.table.Station()
	if station == nil {
		return target{}, q, wire.Fail("sandbox_not_ready", "init has not been called")
	}
	place, problem := station.Place(q.text("user"), q.text("cwd"))
	if problem != nil {
		return target{}, q, problem
	}
	t := target{user: place.User, names: files.NewNames(s.users), cwd: place.Cwd}
	t.full, problem = t.whole(name)
	return t, q, problem
}

func (t target) whole(name string) (string, *wire.Problem) {
	if problem := files.Check(name); problem != nil {
		return "", problem
	}
	if !strings.HasPrefix(name, "/") {
		name = strings.TrimSuffix(t.cwd, "/") + "/" + name
	}
	return name, files.Check(name)
}

// path reads a path, as text or in base64.
func (q *query) path(name string) string {
	encoded := q.text(name + "_base64")
	if encoded == nil {
		return q.values.Get(name)
	}
	bytes, err := base64.StdEncoding.DecodeString(*encoded)
	if err != nil || q.values.Has(name) {
		q.refuse("%s_base64 is base64, and stands alone", name)
	}
	return string(bytes)
}

func (q *query) mode() *uint32 {
	text := q.text("mode")
	if text == nil {
		return nil
	}
	value, err := strconv.ParseUint(*text, 8, 32)
	if err != nil || value > 0o7777 {
		q.refuse("mode is octal, at most 7777")
	}
	mode := uint32(value)
	return &mode
}

func (q *query) number(name string, absent, least, most int64) int64 {
	text := q.values.Get(name)
	if text == "" {
		return absent
	}
	value, err := strconv.ParseInt(text, 10, 64)
	if err != nil || value < least || value > most {
		q.refuse("%s is a number from %d to %d", name, least, most)
	}
	return value
}

func (s *Server) stat(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	t, q, problem := s.about(r, "follow")
	if problem != nil {
		return problem
	}
	follow := q.flag("follow")
	if q.problem != nil {
		return q.problem
	}
	info, problem := files.Stat(t.user, t.names, t.full, follow)
	if problem != nil {
		return problem
	}
	return answer(w, http.StatusOK, info)
}

func (s *Server) alter(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	t, q, problem := s.about(r, "mode", "owner", "group", "modified_at", "recursive")
	if problem != nil {
		return problem
	}
	change, recursive := files.Change{Mode: q.mode()}, q.flag("recursive")
	if text := q.text("modified_at"); text != nil {
		at, err := time.Parse(time.RFC3339Nano, *text)
		if err != nil {
			q.refuse("modified_at is a time")
		}
		change.ModifiedAt = &at
	}
	if q.problem != nil {
		return q.problem
	}
	if owner := q.text("owner"); owner != nil {
		found, problem := s.users.Find(*owner)
		if problem != nil {
			return problem
		}
		change.UID = &found.UID
		if strings.Contains(*owner, ":") {
			change.GID = &found.GID
		}
	}
	if group := q.text("group"); group != nil {
		gid, problem := s.users.FindGroup(*group)
		if problem != nil {
			return problem
		}
		change.GID = &gid
	}
	info, problem := files.Alter(t.user, t.names, t.full, change, recursive)
	if problem != nil {
		return problem
	}
	return answer(w, http.StatusOK, info)
}

func (s *Server) remove(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	t, q, problem := s.about(r, "recursive", "missing_ok")
	if problem != nil {
		return problem
	}
	recursive, missingOK := q.flag("recursive"), q.flag("missing_ok")
	if q.problem != nil {
		return q.problem
	}
	if problem := files.Remove(t.user, t.full, recursive, missingOK); problem != nil {
		return problem
	}
	return empty(w)
}

func (s *Server) move(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	t, q, problem := s.about(r, "to", "to_base64", "overwrite")
	if problem != nil {
		return problem
	}
	name, overwrite := q.path("to"), q.flag("overwrite")
	if q.problem != nil {
		return q.problem
	}
	to, problem := t.whole(name)
	if problem != nil {
		return problem
	}
	info, problem := files.Move(t.user, t.names, t.full, to, overwrite)
	if problem != nil {
		return problem
	}
	return answer(w, http.StatusOK, info)
}

func (s *Server) makeDirectory(w http.ResponseWriter, r *http.Request, _ string) *wire.Problem {
	t, q, problem := s.about(r, "mode", "parents")
	if problem != nil {
		return problem
	}
	mode, parents := q.mode(), q.flag("parents")
	if q.problem != nil {
		return q.problem
	}
	info, made, problem := files.MakeDirectory(t.user, t.names, t.full, mode, parents)
	if problem != nil {
		return problem
	}
	return answer(w, created(made), info)
}

func created(made bool) int {
	if made {
		return http.StatusCreated
	}
	return http.StatusOK
}
