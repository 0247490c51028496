package files

import (
	"errors"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/wire"
)

// Listing says what of a directory is listed: so many levels, behind a path (below it or whole), at most so many (0: all).
type Listing struct {
	Depth int
	After string
	Limit int
}

// errEnough ends a walk early.
var errEnough = errors.New("enough")

type walk struct {
	Listing
	names *Names
	base  string
	give  func(wire.FileInfo) error
	given int
	more  bool
}

// List gives the entries of a directory, sorted by the bytes of their paths; links are not followed. What vanishes meanwhile
// is left out, as is what is in a directory below that the user may not read. `begin` is called before the first entry,
// when nothing can be refused any more. Errors of `give` are returned as they are.
func List(
	user identity.User, names *Names, full string, listing Listing, begin func(), give func(wire.FileInfo) error,
) (more bool, problem *wire.Problem, failed error) {
	w := &walk{Listing: listing, names: names, give: give}
	err := as(user, func() error {
		dir, err := open(full, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		w.base = tidy(full, dir)
		w.After = strings.TrimPrefix(w.After, strings.TrimSuffix(w.base, "/")+"/")
		entries, err := sorted(dir)
		if err != nil {
			return err
		}
		begin()
		failed = w.level(dir, "", entries, 1)
		return nil
	})
	if err != nil {
		return false, explain(full, err), nil
	}
	if errors.Is(failed, errEnough) {
		failed = nil
	}
	return w.more, nil, failed
}

// sorted returns each name, and with a slash behind it where what is below it would come: `a`, `a.b`, `a/`, `a0`.
func sorted(dir int) ([]string, error) {
	found, err := names(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range found {
		found = append(found, name+"/")
	}
	slices.Sort(found)
	return found, nil
}

func (w *walk) level(dir int, prefix string, entries []string, depth int) error {
	directories := map[string]bool{}
	for _, entry := range entries {
		name, inside := strings.CutSuffix(entry, "/")
		shown := prefix + name
		if inside {
			if directories[name] && depth < w.Depth && w.reaches(shown+"/") {
				if err := w.descend(dir, name, shown, depth); err != nil {
					return err
				}
			}
			continue
		}
		var status unix.Stat_t
		if unix.Fstatat(dir, name, &status, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		if status.Mode&unix.S_IFMT == unix.S_IFDIR {
			directories[name] = true
		}
		if shown <= w.After && w.After != "" {
			continue
		}
		if err := w.offer(dir, name, shown, &status); err != nil {
			return err
		}
	}
	return nil
}

// reaches tells whether anything that begins with the prefix lies behind the path that was asked for.
func (w *walk) reaches(prefix string) bool {
	return prefix > w.After || strings.HasPrefix(w.After, prefix)
}

func (w *walk) offer(dir int, name, shown string, status *unix.Stat_t) error {
	if w.Limit > 0 && w.given == w.Limit {
		w.more = true
		return errEnough
	}
	target := ""
	if status.Mode&unix.S_IFMT == unix.S_IFLNK {
		var err error
		if target, err = readLink(dir, name); err != nil {
			return nil
		}
	}
	w.given++
	return w.give(render(w.names, path.Join(w.base, shown), status, target))
}

func (w *walk) descend(dir int, name, shown string, depth int) error {
	fd, err := openDirectory(dir, name)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	entries, err := sorted(fd)
	if err != nil {
		return nil
	}
	return w.level(fd, shown+"/", entries, depth+1)
}
