package files

import (
	"encoding/base64"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/wire"
)

// Names remembers who owns what, for the length of one call.
type Names struct {
	directory     *identity.Directory
	users, groups map[uint32]string
}

// NewNames makes a memory over the image's users.
func NewNames(directory *identity.Directory) *Names {
	return &Names{directory, map[uint32]string{}, map[uint32]string{}}
}

func (n *Names) user(uid uint32) string { return remembered(n.users, uid, n.directory.UserName) }

func (n *Names) group(gid uint32) string { return remembered(n.groups, gid, n.directory.GroupName) }

func remembered(known map[uint32]string, id uint32, find func(uint32) string) string {
	name, found := known[id]
	if !found {
		name = find(id)
		if name == "" || len(name) > maxNameBytes {
			name = strconv.FormatUint(uint64(id), 10)
		}
		known[id] = name
	}
	return name
}

// Stat describes what a path leads to, or with `follow` false the link at its end.
func Stat(user identity.User, names *Names, full string, follow bool) (info wire.FileInfo, problem *wire.Problem) {
	err := as(user, func() (err error) {
		info, err = look(names, full, follow)
		return err
	})
	if err != nil {
		return info, explain(full, err)
	}
	return info, nil
}

func look(names *Names, full string, follow bool) (wire.FileInfo, error) {
	flags := unix.O_PATH
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := open(full, flags, 0)
	if err != nil {
		return wire.FileInfo{}, err
	}
	defer unix.Close(fd)
	return describe(names, tidy(full, fd), fd)
}

// describe says what a descriptor stands for, under the path it was reached by.
func describe(names *Names, shown string, fd int) (wire.FileInfo, error) {
	var status unix.Stat_t
	if err := unix.Fstat(fd, &status); err != nil {
		return wire.FileInfo{}, err
	}
	target := ""
	if status.Mode&unix.S_IFMT == unix.S_IFLNK {
		var err error
		if target, err = readLink(fd, ""); err != nil {
			return wire.FileInfo{}, err
		}
	}
	return render(names, shown, &status, target), nil
}

func readLink(dir int, name string) (string, error) {
	buffer := make([]byte, maxPathBytes)
	count, err := unix.Readlinkat(dir, name, buffer)
	if err != nil {
		return "", err
	}
	return string(buffer[:count]), nil
}

var types = map[uint32]string{
	unix.S_IFREG: "file", unix.S_IFDIR: "directory", unix.S_IFLNK: "symlink", unix.S_IFIFO: "fifo", unix.S_IFSOCK: "socket",
}

func render(names *Names, shown string, status *unix.Stat_t, target string) wire.FileInfo {
	kind, known := types[status.Mode&unix.S_IFMT]
	if !known {
		kind = "device"
	}
	info := wire.FileInfo{
		Name: strings.ToValidUTF8(path.Base(shown), "\uFFFD"), Type: kind, SizeBytes: max(status.Size, 0),
		Mode: fmt.Sprintf("%04o", status.Mode&0o7777), UID: status.Uid, GID: status.Gid,
		Owner: names.user(status.Uid), Group: names.group(status.Gid),
		ModifiedAt: timeOf(status.Mtim), ETag: tagOf(status),
	}
	info.Path, info.PathBase64 = textOrBytes(shown)
	if kind == "symlink" {
		info.SymlinkTarget, info.SymlinkTargetBase64 = textOrBytes(target)
	}
	return info
}

func textOrBytes(text string) (plain, encoded *string) {
	if utf8.ValidString(text) {
		return &text, nil
	}
	bytes := base64.StdEncoding.EncodeToString([]byte(text))
	return nil, &bytes
}

// timeOf renders a time in the years that everybody can read.
func timeOf(at unix.Timespec) string {
	const least, most = -62135596800, 253402300799
	return time.Unix(min(max(at.Sec, least), most), at.Nsec).UTC().Format("2006-01-02T15:04:05.000Z")
}

// tagOf differs whenever the bytes may: another file, another size, or written to in between.
func tagOf(status *unix.Stat_t) string {
	return fmt.Sprintf(`"%x-%x-%x-%x-%x"`, status.Dev, status.Ino, status.Size, nanoseconds(status.Mtim), nanoseconds(status.Ctim))
}

func nanoseconds(at unix.Timespec) uint64 { return uint64(at.Sec)*1_000_000_000 + uint64(at.Nsec) }

// Matches tells whether an entity tag is in the value of an `If-Match` or `If-None-Match`. `*` is any file that is there.
func Matches(header, tag string) bool {
	for part := range strings.SplitSeq(header, ",") {
		part = strings.TrimSpace(part)
		if tag != "" && (part == "*" || strings.TrimPrefix(part, "W/") == tag) {
			return true
		}
	}
	return false
}
