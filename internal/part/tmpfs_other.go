//go:build !linux

package part

func noTmpfs() string { return "that is for Linux" }
