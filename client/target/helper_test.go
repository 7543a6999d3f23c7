//go:build linux

package target_test

import "golang.org/x/sys/unix"

func exchange(a, b string) { unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE) }
