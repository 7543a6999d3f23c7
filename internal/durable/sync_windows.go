package durable

// SyncDir does nothing on Windows, which has no call to make a directory's names durable.
func SyncDir(dir string) error { return nil }
