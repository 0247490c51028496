package files

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"sandlot.dev/guest/internal/identity"
	"sandlot.dev/guest/internal/wire"
)

// Change is what a file is given; nil leaves it as it is.
type Change struct {
	Mode       *uint32
	UID, GID   *uint32
	ModifiedAt *time.Time
}

// Alter changes mode, owner and time of a file, and of everything below it when it recurses.
func Alter(user identity.User, names *Names, full string, change Change, recursive bool) (info wire.FileInfo, problem *wire.Problem) {
	err := as(user, func() error {
		fd, err := open(full, unix.O_PATH, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if recursive {
			err = change.below(fd, 0)
		}
		if err == nil {
			err = change.apply(fd)
		}
		if err == nil {
			info, err = describe(names, tidy(full, fd), fd)
		}
		return err
	})
	if err != nil {
		return info, explain(full, err)
	}
	return info, nil
}

// below changes what is in a directory first, so that a mode that closes it comes last.
func (c Change) below(dir, depth int) error {
	if depth > deepest {
		return errTooDeep
	}
	opened, err := reopen(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(opened)
	entries, err := names(opened)
	if err != nil {
		return err
	}
	for _, name := range entries {
		fd, err := unix.Openat(opened, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return err
		}
		err = c.one(fd, depth)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

func (c Change) one(fd, depth int) error {
	var status unix.Stat_t
	if err := unix.Fstat(fd, &status); err != nil {
		return err
	}
	if status.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := c.below(fd, depth+1); err != nil {
			return err
		}
	}
	return c.apply(fd)
}

// apply changes exactly what the descriptor stands for. A link has no mode of its own.
func (c Change) apply(fd int) error {
	var status unix.Stat_t
	if err := unix.Fstat(fd, &status); err != nil {
		return err
	}
	link := status.Mode&unix.S_IFMT == unix.S_IFLNK
	if c.UID != nil || c.GID != nil {
		if err := unix.Fchownat(fd, "", orKeep(c.UID), orKeep(c.GID), unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if c.Mode != nil && !link {
		if err := unix.Chmod(ownPath(fd), *c.Mode); err != nil {
			return err
		}
	}
	if c.ModifiedAt != nil && !link {
		at, err := unix.TimeToTimespec(*c.ModifiedAt)
		if err != nil {
			return unix.EINVAL
		}
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, at}
		return unix.UtimesNanoAt(unix.AT_FDCWD, ownPath(fd), times, 0)
	}
	return nil
}

func orKeep(id *uint32) int {
	if id == nil {
		return -1
	}
	return int(*id)
}

// Remove removes a file, a link itself, or a directory: an empty one unless it recurses.
func Remove(user identity.User, full string, recursive, missingOK bool) *wire.Problem {
	err := as(user, func() error {
		at, err := parent(full)
		if errors.Is(err, unix.EISDIR) {
			return unix.EBUSY
		}
		if err != nil {
			return err
		}
		defer at.close()
		return remove(at, recursive, 0)
	})
	if err != nil && !(missingOK && errors.Is(err, unix.ENOENT)) {
		return explain(full, err)
	}
	return nil
}

// remove never follows a link: a directory that is swapped for one is found to be none, and unlinked as what it is.
func remove(at place, recursive bool, depth int) error {
	err := unix.Unlinkat(at.dir, at.name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return err
	}
	var status unix.Stat_t
	if failed := unix.Fstatat(at.dir, at.name, &status, unix.AT_SYMLINK_NOFOLLOW); failed != nil {
		return failed
	}
	if status.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	err = unix.Unlinkat(at.dir, at.name, unix.AT_REMOVEDIR)
	if !recursive || !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		if errors.Is(err, unix.EEXIST) {
			return unix.ENOTEMPTY
		}
		return err
	}
	return empty(at, depth)
}

func empty(at place, depth int) error {
	if depth > deepest {
		return errTooDeep
	}
	dir, err := openDirectory(at.dir, at.name)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	// Somebody may be adding to it: a few rounds, then it is not empty.
	for range 8 {
		entries, err := names(dir)
		if err != nil {
			return err
		}
		for _, name := range entries {
			if err := remove(place{dir, name}, true, depth+1); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
		}
		err = unix.Unlinkat(at.dir, at.name, unix.AT_REMOVEDIR)
		if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
			return err
		}
		if _, err := unix.Seek(dir, 0, 0); err != nil {
			return err
		}
	}
	return unix.ENOTEMPTY
}

// Move renames, links themselves too; without `overwrite` nothing is replaced.
func Move(user identity.User, names *Names, from, to string, overwrite bool) (info wire.FileInfo, problem *wire.Problem) {
	failed := from
	err := as(user, func() error {
		source, err := parent(from)
		if err != nil {
			return err
		}
		defer source.close()
		failed = to
		target, err := parent(to)
		if err != nil {
			return err
		}
		defer target.close()
		failed = from + " to " + to
		flags := uint(0)
		if !overwrite {
			flags = unix.RENAME_NOREPLACE
		}
		if err := unix.Renameat2(source.dir, source.name, target.dir, target.name, flags); err != nil {
			return err
		}
		info, err = look(names, to, false)
		return err
	})
	if errors.Is(err, unix.EEXIST) && overwrite {
		err = unix.ENOTEMPTY
	}
	if err != nil {
		return info, explain(failed, err)
	}
	return info, nil
}

// MakeDirectory makes a directory; one that is there already is left as it is.
func MakeDirectory(user identity.User, names *Names, full string, mode *uint32, parents bool) (info wire.FileInfo, made bool, problem *wire.Problem) {
	err := as(user, func() error {
		if parents {
			if err := makeParents(full); err != nil {
				return err
			}
		}
		if err := makeLast(full, mode, &made); err != nil {
			return err
		}
		fd, err := open(full, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		info, err = describe(names, tidy(full, fd), fd)
		return err
	})
	if err != nil {
		return info, made, explain(full, err)
	}
	return info, made, nil
}

func makeLast(full string, mode *uint32, made *bool) error {
	at, err := parent(full)
	if errors.Is(err, unix.EISDIR) {
		return nil // the root, `.` or `..`: opening it tells
	}
	if err != nil {
		return err
	}
	defer at.close()
	err = unix.Mkdirat(at.dir, at.name, newDirMode)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EROFS) {
		return nil
	}
	if err != nil {
		// A directory that is there may refuse the attempt for another reason.
		var present unix.Stat_t
		if unix.Fstatat(at.dir, at.name, &present, 0) == nil {
			return nil
		}
		return err
	}
	*made = true
	if mode == nil {
		return nil
	}
	fd, err := hold(at.dir, at.name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Chmod(ownPath(fd), *mode)
}
