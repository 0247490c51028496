// Package inittable says what a first shell of the sandbox sees: who it is, where, and with which environment.
package inittable

import (
	"cmp"
	"maps"
	"os"
	"path"
	"slices"

	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/wire"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Station is the outcome of one init; it never changes.
type Station struct {
	init  wire.Init
	users *identity.Directory
	user  identity.User
}

// Place is where and as whom one process runs.
type Place struct {
	User identity.User
	Cwd  string
}

// NewStation resolves the sandbox's defaults. `user_not_found` and `cwd_not_found` refuse them.
func NewStation(init wire.Init, users *identity.Directory) (*Station, *wire.Problem) {
	station := &Station{init: init, users: users}
	user, problem := users.Find(cmp.Or(text(init.User), text(init.ImageUser), "0"))
	if problem != nil {
		return nil, problem
	}
	station.user = user
	if _, problem := station.Place(nil, nil); problem != nil {
		return nil, problem
	}
	return station, nil
}

func text(value *string) string {
	if value == nil {
		return ""
	}
	return *value
}

// Place resolves user and cwd of one request.
func (s *Station) Place(userText, cwd *string) (Place, *wire.Problem) {
	user := s.user
	if text(userText) != "" {
		found, problem := s.users.Find(*userText)
		if problem != nil {
			return Place{}, problem
		}
		user = found
	}
	dir, problem := s.cwd(user, text(cwd))
	return Place{User: user, Cwd: dir}, problem
}

// cwd: the request's, else the sandbox's, else the image's unless it is the root, else the user's home if it exists,
// else the root. A relative one starts where the request would have been without it.
func (s *Station) cwd(user identity.User, asked string) (string, *wire.Problem) {
	if path.IsAbs(asked) {
		return existing(asked)
	}
	base, problem := s.defaultCwd(user)
	if problem != nil || asked == "" {
		return base, problem
	}
	return existing(path.Clean(base + "/" + asked))
}

func (s *Station) defaultCwd(user identity.User) (string, *wire.Problem) {
	own := text(s.init.Cwd)
	switch {
	case path.IsAbs(own):
		return existing(path.Clean(own))
	case own != "":
		return existing(path.Clean(s.imageCwd(user) + "/" + own))
	}
	return s.imageCwd(user), nil
}

// imageCwd is where a request would be if neither it nor the sandbox named a place.
func (s *Station) imageCwd(user identity.User) string {
	if image := path.Clean("/" + text(s.init.ImageCwd)); image != "/" && isDir(image) {
		return image
	}
	if path.IsAbs(user.Home) && isDir(user.Home) {
		return user.Home
	}
	return "/"
}

func existing(dir string) (string, *wire.Problem) {
	if !isDir(dir) {
		return "", wire.Fail("cwd_not_found", "no directory %q", dir)
	}
	return dir, nil
}

func isDir(dir string) bool {
	status, err := os.Stat(dir)
	return err == nil && status.IsDir()
}

// Shell is the first shell the image has, or "".
func (s *Station) Shell() string {
	for _, shell := range []string{"/bin/bash", "/bin/sh"} {
		if status, err := os.Stat(shell); err == nil && status.Mode().IsRegular() && status.Mode()&0o111 != 0 {
			return shell
		}
	}
	return ""
}

// Own is what one process brings to its environment.
type Own struct {
	Env         map[string]string
	WithSecrets bool
	Terminal    bool
}

// Environment merges what a process sees: the image's, the user's, the sandbox's, its secrets, its own. It returns PATH too.
func (s *Station) Environment(user identity.User, own Own) (env []string, search string) {
	merged := map[string]string{"PATH": defaultPath, "LANG": "C.UTF-8"}
	if own.Terminal {
		merged["TERM"] = "xterm-256color"
	}
	maps.Copy(merged, s.init.ImageEnv)
	maps.Copy(merged, map[string]string{
		"HOME": user.Home, "USER": user.Name, "LOGNAME": user.Name, "SHELL": user.Shell,
	})
	maps.Copy(merged, s.init.Env)
	if own.WithSecrets {
		maps.Copy(merged, s.init.SecretEnv)
	}
	maps.Copy(merged, own.Env)
	for _, name := range slices.Sorted(maps.Keys(merged)) {
		env = append(env, name+"="+merged[name])
	}
	return env, merged["PATH"]
}

// MaxProcesses is the sandbox's limit.
func (s *Station) MaxProcesses() int { return s.init.MaxProcesses }

// Result reports the defaults.
func (s *Station) Result() wire.InitResult {
	place, _ := s.Place(nil, nil)
	result := wire.InitResult{
		User: place.User.Name, UID: place.User.UID, GID: place.User.GID, Home: place.User.Home, Cwd: place.Cwd,
	}
	if shell := s.Shell(); shell != "" {
		result.Shell = &shell
	}
	return result
}
