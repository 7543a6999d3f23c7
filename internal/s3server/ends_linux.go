package s3server

import "syscall"

// endsWithUs has the kernel end a child with the process that started it.
func endsWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
