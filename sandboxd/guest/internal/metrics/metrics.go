// Package metrics reads the sandbox's own view of its use. All of it is a hint.
package metrics

import (
	"os"
	"strconv"
	"strings"
	"syscall"

	"sandlot.dev/guest/internal/wire"
)

const ticksPerSecond = 100

// Read returns all but the ports.
func Read() wire.Metrics {
	metrics := wire.Metrics{CPUUsedSeconds: cpuUsed(), Processes: len(pids()), MemoryUsedBytes: memoryUsed()}
	var disk syscall.Statfs_t
	if syscall.Statfs("/", &disk) == nil {
		metrics.DiskLimitBytes = int64(disk.Blocks) * disk.Bsize
		metrics.DiskUsedBytes = int64(disk.Blocks-disk.Bfree) * disk.Bsize
	}
	return metrics
}

// cpuUsed is the time of all processes that ever were, from the line `cpu user nice system idle…`.
func cpuUsed() float64 {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	total := 0.0
	for i := 1; i <= 3 && i < len(fields); i++ {
		ticks, _ := strconv.ParseFloat(fields[i], 64)
		total += ticks
	}
	return total / ticksPerSecond
}

// Process returns what a living process used; zeros if it is gone.
func Process(pid int) (cpuSeconds float64, peakBytes int64) {
	dir := "/proc/" + strconv.Itoa(pid)
	if fields := statFields(dir + "/stat"); len(fields) > 12 {
		user, _ := strconv.ParseFloat(fields[11], 64)
		system, _ := strconv.ParseFloat(fields[12], 64)
		cpuSeconds = (user + system) / ticksPerSecond
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return cpuSeconds, 0
	}
	for _, name := range []string{"VmHWM:", "VmRSS:"} {
		if kib, found := field(string(status), name); found {
			return cpuSeconds, kib * 1024
		}
	}
	return cpuSeconds, 0
}

// statFields are those after the command's name, which may hold anything.
func statFields(path string) []string {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}

func field(text, name string) (int64, bool) {
	for line := range strings.Lines(text) {
		if rest, found := strings.CutPrefix(line, name); found {
			parts := strings.Fields(rest)
			if len(parts) == 0 {
				return 0, false
			}
			value, err := strconv.ParseInt(parts[0], 10, 64)
			return value, err == nil
		}
	}
	return 0, false
}

func memoryUsed() int64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	total, _ := field(string(text), "MemTotal:")
	free, _ := field(string(text), "MemAvailable:")
	return (total - free) * 1024
}

// Count is the number of processes.
func Count() int { return len(pids()) }

func pids() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []int
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all
}
