package never

import (
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// end writes slot at that place of f and syncs it, writes said to standard error (and sorry, if the first failed), the
// line to also unless that is nil, and ends the process with ExitStatus.
//
// From the first step on no other goroutine goes on: with one processor, which this goroutine does not give back in
// raw system calls, whatever the rest of the process was about to acknowledge or delete does not happen. If the disk hangs
// instead of failing, the process hangs here, and says nothing more to anybody.
func end(f *os.File, slot []byte, at int64, said, sorry []byte, also *os.File, line []byte) {
	fd, to := f.Fd(), ^uintptr(0)
	if also != nil {
		to = also.Fd()
	}
	runtime.LockOSThread()
	runtime.GOMAXPROCS(1)
	last(fd, slot, at, said, sorry, to, line)
}

// last is nosplit so that there is no place in it where the scheduler could take the processor away.
//
//go:nosplit
//go:norace
func last(fd uintptr, slot []byte, at int64, said, sorry []byte, also uintptr, line []byte) {
	wrote := len(slot) > 0
	for done := 0; wrote && done < len(slot); {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_PWRITE64, fd, uintptr(unsafe.Pointer(&slot[done])), uintptr(len(slot)-done), uintptr(at)+uintptr(done), 0, 0)
		if errno != 0 && errno != syscall.EINTR || errno == 0 && n == 0 {
			wrote = false
		} else if errno == 0 {
			done += int(n)
		}
	}
	for wrote {
		_, _, errno := syscall.RawSyscall(syscall.SYS_FSYNC, fd, 0, 0)
		if errno == 0 {
			break
		}
		wrote = errno == syscall.EINTR
	}
	say(said)
	if !wrote {
		say(sorry)
	}
	if also != ^uintptr(0) {
		syscall.RawSyscall(syscall.SYS_WRITE, also, uintptr(unsafe.Pointer(&line[0])), uintptr(len(line)))
	}
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, ExitStatus, 0, 0)
	}
}

// say writes text to standard error. If that is a pipe that does not block and is full, it tries for three seconds.
//
//go:nosplit
//go:norace
func say(text []byte) {
	pause := syscall.Timespec{Nsec: 10e6}
	for done, full := 0, 0; done < len(text) && full < 300; {
		n, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, 2, uintptr(unsafe.Pointer(&text[done])), uintptr(len(text)-done))
		switch errno {
		case 0:
			done += int(n)
		case syscall.EINTR:
		case syscall.EAGAIN:
			full++
			syscall.RawSyscall(syscall.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0)
		default:
			return
		}
	}
}
