// Package identity reads the image's own users and groups. The files are hostile: they are bounded and never trusted to parse.
package identity

import (
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"sandlot.dev/guest/internal/wire"
)

const maxFileBytes = 4 << 20

// User is who a process runs as.
type User struct {
	Name   string
	UID    uint32
	GID    uint32
	Groups []uint32
	Home   string
	Shell  string
}

type account struct {
	name, home, shell string
	uid, gid          uint32
}

type group struct {
	name    string
	gid     uint32
	members []string
}

type stamp struct {
	size, seconds, nanoseconds int64
	inode                      uint64
}

// Directory answers questions about the users in one root's /etc; it reads the files again when they change.
type Directory struct {
	mu          sync.Mutex
	passwdPath  string
	groupPath   string
	passwdStamp stamp
	groupStamp  stamp
	accounts    []account
	groups      []group
}

// NewDirectory reads users below `etc`.
func NewDirectory(etc string) *Directory {
	return &Directory{passwdPath: etc + "/passwd", groupPath: etc + "/group"}
}

// Find resolves a name, or uid[:gid] which need not exist; `user_not_found` otherwise.
func (d *Directory) Find(text string) (User, *wire.Problem) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refresh()
	name, groupText, explicit := strings.Cut(text, ":")
	user, found := d.account(name)
	if !found {
		return User{}, wire.Fail("user_not_found", "no user %q", name)
	}
	if !explicit {
		user.Groups = d.supplementary(user)
		return user, nil
	}
	gid, found := d.group(groupText)
	if !found {
		return User{}, wire.Fail("user_not_found", "no group %q", groupText)
	}
	user.GID = gid
	user.Groups = []uint32{gid}
	return user, nil
}

func (d *Directory) account(name string) (User, bool) {
	for i := range d.accounts {
		if d.accounts[i].name == name {
			return userOf(&d.accounts[i]), true
		}
	}
	uid, err := strconv.ParseUint(name, 10, 32)
	if err != nil || uid == 1<<32-1 {
		return User{}, false
	}
	for i := range d.accounts {
		if d.accounts[i].uid == uint32(uid) {
			return userOf(&d.accounts[i]), true
		}
	}
	return User{Name: name, UID: uint32(uid), Home: "/", Shell: "/bin/sh"}, true
}

func userOf(from *account) User {
	return User{Name: from.name, UID: from.uid, GID: from.gid, Home: from.home, Shell: from.shell}
}

func (d *Directory) group(name string) (uint32, bool) {
	for i := range d.groups {
		if d.groups[i].name == name {
			return d.groups[i].gid, true
		}
	}
	gid, err := strconv.ParseUint(name, 10, 32)
	return uint32(gid), err == nil && gid != 1<<32-1
}

func (d *Directory) supplementary(user User) []uint32 {
	groups := []uint32{user.GID}
	for i := range d.groups {
		if slices.Contains(d.groups[i].members, user.Name) && !slices.Contains(groups, d.groups[i].gid) {
			groups = append(groups, d.groups[i].gid)
		}
	}
	return groups
}

func (d *Directory) refresh() {
	if at := stampOf(d.passwdPath); at != d.passwdStamp {
		d.passwdStamp = at
		d.accounts = parse(d.passwdPath, 7, parseAccount)
	}
	if at := stampOf(d.groupPath); at != d.groupStamp {
		d.groupStamp = at
		d.groups = parse(d.groupPath, 4, parseGroup)
	}
}

func stampOf(path string) stamp {
	var status syscall.Stat_t
	if syscall.Stat(path, &status) != nil {
		return stamp{}
	}
	return stamp{status.Size, status.Mtim.Sec, status.Mtim.Nsec, status.Ino}
}

func parse[T any](path string, fields int, one func([]string) (T, bool)) []T {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer file.Close()
	if status, err := file.Stat(); err != nil || !status.Mode().IsRegular() {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(file, maxFileBytes))
	if err != nil {
		return nil
	}
	var all []T
	for line := range strings.Lines(string(text)) {
		parts := strings.Split(strings.TrimRight(line, "\r\n"), ":")
		if len(parts) < fields || parts[0] == "" {
			continue
		}
		if value, ok := one(parts); ok {
			all = append(all, value)
		}
	}
	return all
}

func parseAccount(parts []string) (account, bool) {
	uid, uidErr := strconv.ParseUint(parts[2], 10, 32)
	gid, gidErr := strconv.ParseUint(parts[3], 10, 32)
	home, shell := parts[5], parts[6]
	if home == "" {
		home = "/"
	}
	if shell == "" {
		shell = "/bin/sh"
	}
	return account{parts[0], home, shell, uint32(uid), uint32(gid)}, uidErr == nil && gidErr == nil
}

func parseGroup(parts []string) (group, bool) {
	gid, err := strconv.ParseUint(parts[2], 10, 32)
	return group{parts[0], uint32(gid), strings.Split(parts[3], ",")}, err == nil
}

// UserName returns the name of a uid, or "".
func (d *Directory) UserName(uid uint32) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refresh()
	for i := range d.accounts {
		if d.accounts[i].uid == uid {
			return d.accounts[i].name
		}
	}
	return ""
}

// GroupName returns the name of a gid, or "".
func (d *Directory) GroupName(gid uint32) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refresh()
	for i := range d.groups {
		if d.groups[i].gid == gid {
			return d.groups[i].name
		}
	}
	return ""
}

// FindGroup resolves a group's name or number; `user_not_found` otherwise.
func (d *Directory) FindGroup(text string) (uint32, *wire.Problem) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refresh()
	gid, found := d.group(text)
	if !found {
		return 0, wire.Fail("user_not_found", "no group %q", text)
	}
	return gid, nil
}
