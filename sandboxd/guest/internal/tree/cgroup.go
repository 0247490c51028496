package tree

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	pidsRoot   = cgroupRoot + "/pids"
	// A tree started while others use up the limit gets this share of it, so that the sandbox can still be worked in.
	leastShare = 8
)

// Cgroups makes trees that are `pids` cgroups: membership survives setsid, double forks and a cleared environment.
//
// In gVisor a parent cgroup is not charged for its children, so each tree has a limit of its own: what was left of the
// sandbox's when it started.
type Cgroups struct {
	dir   string
	tasks int
	limit atomic.Int64
}

// MountCgroups makes the hierarchy reachable, mounting it when the bundle did not.
func MountCgroups() (*Cgroups, error) {
	if _, err := os.Stat(pidsRoot + "/tasks"); err != nil {
		if err := mountPids(); err != nil {
			return nil, err
		}
	}
	tasks, err := unix.Open(pidsRoot+"/tasks", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open pids cgroup: %w", err)
	}
	dir := pidsRoot + "/sandlot"
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return &Cgroups{dir: dir, tasks: tasks}, nil
}

func mountPids() error {
	if err := unix.Mount("none", cgroupRoot, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", cgroupRoot, err)
	}
	if err := os.Mkdir(pidsRoot, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("cgroup", pidsRoot, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "pids"); err != nil {
		return fmt.Errorf("mount %s: %w", pidsRoot, err)
	}
	return nil
}

// SetLimit bounds trees made from now on.
func (c *Cgroups) SetLimit(processes int) { c.limit.Store(int64(processes)) }

// New makes an empty tree.
func (c *Cgroups) New(id string) (Tree, error) {
	made := &cgroup{forest: c, dir: c.dir + "/" + id}
	if err := unix.Mkdir(made.dir, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	if limit := c.limit.Load(); limit > 0 {
		var system unix.Sysinfo_t
		_ = unix.Sysinfo(&system)
		left := max(limit-int64(system.Procs), limit/leastShare, 1)
		if err := writeFile(made.dir+"/pids.max", strconv.FormatInt(left, 10)); err != nil {
			return nil, fmt.Errorf("limit cgroup: %w", err)
		}
	}
	return made, nil
}

type cgroup struct {
	forest *Cgroups
	dir    string
}

func (g *cgroup) Enter() (func(), error) {
	self := strconv.Itoa(unix.Gettid())
	if err := writeFile(g.dir+"/tasks", self); err != nil {
		return nil, fmt.Errorf("join cgroup: %w", err)
	}
	return func() { _, _ = unix.Write(g.forest.tasks, []byte(self)) }, nil
}

func (g *cgroup) Started(int) {}

func (g *cgroup) Members() []int { return readNumbers(g.dir + "/cgroup.procs") }

func (g *cgroup) Freeze() { _ = writeFile(g.dir+"/pids.max", "0") }

func (g *cgroup) Remove() bool {
	err := unix.Rmdir(g.dir)
	return err == nil || errors.Is(err, unix.ENOENT)
}

// writeFile spares the poller's detour of os.WriteFile: it is on the way of every start.
func writeFile(path, text string) error {
	file, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Write(file, []byte(text))
	return errors.Join(err, unix.Close(file))
}
