package s3server

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// endsWithUs has the kernel end a child with the process that started it.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// awaitStopped returns when every thread of a process has stopped: the signal for it takes a while.
func awaitStopped(pid int) error {
	for range 1000 {
		running, err := threads(pid)
		if err != nil || running == 0 {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("process %d does not stop", pid)
}

// threads counts the threads of a process that have not stopped.
func threads(pid int) (running int, err error) {
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return 0, err
	}
	for _, file := range all {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		if _, state, ok := bytes.Cut(stat, []byte(") ")); !ok || state[0] != 'T' {
			running++
		}
	}
	return running, nil
}
