package remote

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/history"
	"holdfast/internal/durable"
)

// memory is the newest head that this machine has verified, kept over runs. Its file is one line:
//
//	holdfast-head 1 VAULT N HEAD
//
// A file that cannot be read as this is taken for absent; the next success writes it anew.
type memory struct {
	path  string // "" for none
	vault holdfast.VaultID
	n     uint64 // 0 for nothing remembered
	head  holdfast.Head
}

func recall(dir string, m *keyring.Machine) memory {
	if dir == "" {
		return memory{}
	}
	mem := memory{path: filepath.Join(dir, "head"), vault: m.Vault}
	b, err := os.ReadFile(mem.path)
	if err != nil {
		return mem
	}
	var version int
	var vault, head string
	var n uint64
	if _, err := fmt.Sscanf(string(b), "holdfast-head %d %64s %d %64s\n", &version, &vault, &n, &head); err != nil || version != 1 || vault != m.Vault.String() {
		return mem
	}
	h, err := hex.DecodeString(head)
	if err != nil || len(h) != len(mem.head) {
		return mem
	}
	mem.n = n
	copy(mem.head[:], h)
	return mem
}

// check compares v, as it passes place n, with what is remembered.
func (mem *memory) check(v *history.Vault) error {
	if mem.n != 0 && v.N == mem.n && v.Head != mem.head {
		return fmt.Errorf("history record %d: %w: this machine saw another head there earlier", v.N, history.ErrOrder)
	}
	return nil
}

// end compares the end of what the service shows with what is remembered.
func (mem *memory) end(v *history.Vault) error {
	if v.N < mem.n {
		return fmt.Errorf("%w: it ends at record %d, but this machine saw record %d earlier", history.ErrOrder, v.N, mem.n)
	}
	return nil
}

// keep remembers the end of v durably.
func (mem *memory) keep(v *history.Vault) error {
	if mem.path == "" || v.N <= mem.n {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(mem.path), 0o700); err != nil {
		return fmt.Errorf("make cache directory: %w", err)
	}
	line := fmt.Sprintf("holdfast-head 1 %s %d %s\n", mem.vault, v.N, v.Head)
	if err := durable.WriteFile(mem.path, []byte(line), 0o600); err != nil {
		return fmt.Errorf("remember the service's head: %w", err)
	}
	mem.n, mem.head = v.N, v.Head
	return nil
}
