package view

import (
	"holdfast"
	"holdfast/history"
	"holdfast/service/segment"
)

// Reader answers questions about a view: of acknowledged segments only, or of everything sequenced. All
// methods return false, without an error, for what is not there.
type Reader struct{ rows Getter }

// NewReader returns a Reader over rows.
func NewReader(rows Getter) Reader { return Reader{rows} }

// Block returns where a block of a group is.
func (r Reader) Block(v holdfast.VaultID, g holdfast.GroupID, name holdfast.Name) (Block, bool, error) {
	panic("not yet")
}

// Segment returns the segment at pos.
func (r Reader) Segment(pos segment.Position) (Segment, bool, error) { panic("not yet") }

// MachineByTLS returns the machine that a connection key is enrolled for.
func (r Reader) MachineByTLS(key [32]byte) (Machine, bool, error) { panic("not yet") }

// AccountByTLS returns the account of a connection key that redeemed a token or is enrolled.
func (r Reader) AccountByTLS(key [32]byte) (holdfast.AccountID, bool, error) { panic("not yet") }

// Account returns an account.
func (r Reader) Account(id holdfast.AccountID) (Account, bool, error) { panic("not yet") }

// AccountByName returns the account of that name.
func (r Reader) AccountByName(name string) (Account, bool, error) { panic("not yet") }

// Usage returns what an account stores, with the integral carried on to the journal time now (ms).
func (r Reader) Usage(id holdfast.AccountID, now int64) (Usage, error) { panic("not yet") }

// Token returns the token with the hash of a secret (wire.HashSecret).
func (r Reader) Token(hash [32]byte) (Token, bool, error) { panic("not yet") }

// Vault returns a vault.
func (r Reader) Vault(id holdfast.VaultID) (Vault, bool, error) { panic("not yet") }

// Signer returns the machine of a vault that signs as signer.
func (r Reader) Signer(v holdfast.VaultID, signer holdfast.SignerID) (Machine, bool, error) {
	panic("not yet")
}

// Session returns a session.
func (r Reader) Session(id holdfast.SessionID) (Session, bool, error) { panic("not yet") }

// History returns the entries of a vault from number after+1 on, encoded one after another: as many as
// fit into max bytes, but at least one if there is one.
func (r Reader) History(v holdfast.VaultID, after uint64, max int) ([]byte, error) { panic("not yet") }

// Record returns the entry of the record with that identity.
func (r Reader) Record(id holdfast.RecordID) (holdfast.VaultID, history.Entry, bool, error) {
	panic("not yet")
}

// Stats returns the totals of the cell.
func (r Reader) Stats() (Stats, error) { panic("not yet") }
