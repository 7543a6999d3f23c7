//go:build !linux

package s3server

import "syscall"

func endsWithUs() *syscall.SysProcAttr { return nil }

func awaitStopped(int) error { return nil }
