// Package wire is what client and service say to one another: HTTP over TLS 1.3, JSON for control and
// framed binary bodies for bulk. docs/protocol.md is the specification for people who write another
// client; this file is its machine-readable half.
//
// Every request path begins with Prefix. Every failed request is answered with an Error as JSON and
// the HTTP status that Code.Status names. A body is never read beyond the limit named beside its type.
package wire

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"holdfast"
)

// Prefix begins the path of every request; the number is holdfast.ProtocolVersion.
const Prefix = "/v1"

// Paths of the requests. {sid} is a session in hex.
const (
	PathHello   = Prefix + "/hello"                  // GET -> Hello; any key
	PathRedeem  = Prefix + "/redeem"                 // POST Redeem -> Redeemed; any key
	PathRecords = Prefix + "/records"                // POST record (binary) -> entry (binary), once it is durable: of every type but open
	PathVaults  = Prefix + "/vaults/{owner}"         // GET -> Vaults; any key; owner in hex
	PathHistory = Prefix + "/history"                // GET ?after=N -> entries (binary), at most MaxHistory bytes; empty at the end
	PathSession = Prefix + "/sessions"               // POST open record (binary) -> entry (binary), once it is durable; opens the session
	PathHave    = Prefix + "/sessions/{sid}/have"    // POST names (binary) -> one byte a name, 1 for present
	PathBlocks  = Prefix + "/sessions/{sid}/blocks"  // POST ?seq=K[&flush=1] block frames -> Stored, once they are durable; flush asks not to wait for more
	PathClose   = Prefix + "/sessions/{sid}/close"   // POST -> {}
	PathFetch   = Prefix + "/groups/{group}/fetch"   // POST [?copy=K] names (binary) -> block frames in bucket order
	PathDamaged = Prefix + "/groups/{group}/damaged" // GET [?after=NAME] -> damaged blocks (binary), at most MaxDamaged; empty at the end
	PathUsage   = Prefix + "/usage"                  // GET -> Usage
)

// MaxCopy is the greatest number of a copy that can be fetched; 0 is the newest copy.
const MaxCopy = 255

// Limits of message bodies, bytes.
const (
	MaxJSON    = 64 << 10
	MaxHistory = 4 << 20
	// MaxNotice bounds what an operator has to say. A client cuts what is longer.
	MaxNotice = 500
	// MaxCurrency bounds what an operator calls his currency.
	MaxCurrency = 32
)

// Hello describes the service. It is answered to any key, so that a refusal can say why.
type Hello struct {
	Protocol int              `json:"protocol"`
	Cell     string           `json:"cell"`
	Time     time.Time        `json:"time"`  // the service's clock
	State    State            `json:"state"` // whether it takes data
	Notice   string           `json:"notice,omitempty"`
	LogKey   string           `json:"log_key"` // hex Ed25519 public key that signs heads
	You      string           `json:"you"`     // "unknown", "account", "machine" or "revoked": what the service knows this key as
	Vault    string           `json:"vault,omitempty"`
	Rights   string           `json:"rights,omitempty"`
	N        uint64           `json:"n,omitempty"` // newest record of that vault
	Head     string           `json:"head,omitempty"`
	Chain    *Chain           `json:"chain,omitempty"`  // where this machine's own chain of records stands
	Credit   *Credit          `json:"credit,omitempty"` // of the caller's account, if that is not paid
	Limits   map[string]int64 `json:"limits"`
}

// Credit is how an account stands.
type Credit struct {
	State CreditState `json:"state"`
	// Days are left until writing stops, or, where it has, until the archives are deleted; not below 0.
	Days int       `json:"days"`
	End  time.Time `json:"end"` // when that is, if nothing changes
}

// String says what becomes of the account if nothing changes.
func (c Credit) String() string {
	when := fmt.Sprintf("in %d days, on %s", c.Days, c.End.UTC().Format(time.DateOnly))
	switch {
	case c.Days == 0:
		when = "now"
	case c.Days == 1:
		when = "within a day"
	}
	switch c.State {
	case CreditStopped:
		return "new backups are refused, and the archives are deleted " + when
	case CreditLapsed:
		return "the archives are being deleted, and can be brought back for a while only"
	}
	return "new backups stop " + when
}

// CreditState is how far an account has come on the way from paid to lapsed.
type CreditState string

// The states of an account.
const (
	CreditPaid    CreditState = "paid" // never in Hello
	CreditLow     CreditState = "low"
	CreditStopped CreditState = "stopped" // no new backups are taken
	CreditLapsed  CreditState = "lapsed"  // the archives are being deleted; for a while they can be brought back
)

// Money is what an account has paid and not used up, and what it pays.
type Money struct {
	Balance string  `json:"balance"`          // of the currency, in decimal, exactly
	Daily   string  `json:"daily"`            // what keeping all that is stored costs a day, rounded up
	Credit  *Credit `json:"credit,omitempty"` // none if it is paid and stores nothing
	// Currency is what the operator calls it; prices are for 10^9 bytes, Stored for a twelfth of 365.25 days.
	Currency string `json:"currency"`
	Stored   string `json:"price_stored"`
	In       string `json:"price_in"`
	Out      string `json:"price_out"`
}

// Chain is the next place in a signer's chain of records.
type Chain struct {
	Seq  uint64 `json:"seq"`
	Prev string `json:"prev"` // hex record ID
}

// State is what a service is able to do at the moment.
type State string

// The states of a service.
const (
	StateServing     State = "serving"
	StateBackendDown State = "backend_down" // its bucket does not answer; it goes on trying
	StateReadOnly    State = "read_only"
	StateMaintenance State = "maintenance"
	StateStopped     State = "stopped"
)

// Redeem exchanges a token's secret for the right of this connection's key to create one vault.
type Redeem struct {
	Secret string `json:"secret"` // hex, 32 bytes
}

// Redeemed answers Redeem.
type Redeemed struct {
	Account string `json:"account"`
}

// Vaults answers which vaults an owner key made, for who has nothing but the owner's 24 words.
type Vaults struct {
	Vaults []string `json:"vaults"` // hex
}

// Stored answers an upload of blocks; all of them are durable.
type Stored struct {
	Stored int `json:"stored"` // new to the group
	Known  int `json:"known"`  // were there already
}

// Usage is what an account stores and has stored.
type Usage struct {
	Account     string `json:"account"`
	StoredBytes uint64 `json:"stored_bytes"`
	BilledBytes uint64 `json:"billed_bytes"` // each block counts as holdfast.LeastBilled at least
	Blocks      uint64 `json:"blocks"`
	Asked       uint64 `json:"asked"` // names that the account's machines asked about
	// ByteSeconds and BilledByteSeconds are the exact integrals over time up to now, in decimal: they exceed 64 bits.
	ByteSeconds       string    `json:"byte_seconds"`
	BilledByteSeconds string    `json:"billed_byte_seconds"`
	AsOf              time.Time `json:"as_of"`
	ReceivedBytes     uint64    `json:"received_bytes"`  // of blocks that were ever stored
	SentBytes         uint64    `json:"sent_bytes"`      // of blocks that were ever sent to the account's machines
	Money             *Money    `json:"money,omitempty"` // where the operator charges for anything
	Today             *Cap      `json:"today,omitempty"` // of the machine that asks, if it has a daily cap
}

// Code names a refusal for programs.
type Code string

// The codes of refusals. The first group is the state of the service; the client says so instead of
// speaking of network failures, and tries again for as long as its patience lasts where Retryable.
const (
	CodeReadOnly    Code = "read_only"
	CodeBusy        Code = "busy"
	CodeBackendDown Code = "backend_down"
	CodeOutOfCredit Code = "out_of_credit"
	CodeMaintenance Code = "maintenance"
	CodeStopped     Code = "stopped"

	CodeUnknownKey   Code = "unknown_key"   // this TLS key is not enrolled
	CodeForbidden    Code = "forbidden"     // enrolled, but without this right
	CodeTokenUnknown Code = "token_unknown" // no such token
	CodeTokenUsed    Code = "token_used"    // redeemed before, by another key
	CodeTokenExpired Code = "token_expired" // older than its 24 h
	CodeRevoked      Code = "revoked"       // this key was revoked by the vault's owner
	CodeNeedsOwner   Code = "needs_owner"   // only the owner may delete that much
	CodeFrozen       Code = "frozen"        // deleting is frozen in this vault
	CodeTooEarly     Code = "too_early"     // the time for that has not come
	CodeCapExceeded  Code = "cap_exceeded"  // this key stored as much as it may today
	CodeBadRequest   Code = "bad_request"   // malformed; sending it again will not help
	CodeTooLarge     Code = "too_large"     // beyond a documented limit
	CodeNotFound     Code = "not_found"
	CodeMissing      Code = "missing"      // blocks that are needed are not there: Missing lists them
	CodeSessionGone  Code = "session_gone" // open a new session and ask again
	CodeStaleChain   Code = "stale_chain"  // sign again after Chain
	CodeBehind       Code = "behind"       // the record cites a head that the service does not have
	CodeOutOfOrder   Code = "out_of_order" // a batch came before its predecessor
	CodeDamaged      Code = "damaged"      // the service found its own copy damaged
	CodeInternal     Code = "internal"
)

// Status returns the HTTP status that carries c.
func (c Code) Status() int {
	switch c {
	case CodeUnknownKey, CodeTokenUnknown:
		return http.StatusUnauthorized
	case CodeForbidden, CodeTokenUsed, CodeTokenExpired, CodeRevoked, CodeNeedsOwner:
		return http.StatusForbidden
	case CodeOutOfCredit:
		return http.StatusPaymentRequired
	case CodeBadRequest:
		return http.StatusBadRequest
	case CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case CodeNotFound, CodeSessionGone:
		return http.StatusNotFound
	case CodeMissing, CodeStaleChain, CodeBehind, CodeOutOfOrder, CodeFrozen, CodeTooEarly:
		return http.StatusConflict
	case CodeCapExceeded:
		return http.StatusTooManyRequests
	case CodeReadOnly, CodeBusy, CodeBackendDown, CodeMaintenance, CodeStopped:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// Retryable reports whether the same request may succeed later without the user doing anything.
func (c Code) Retryable() bool {
	switch c {
	case CodeReadOnly, CodeBusy, CodeBackendDown, CodeMaintenance, CodeStopped, CodeOutOfOrder, CodeInternal:
		return true
	}
	return false
}

// Error is the answer to a request that failed.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`          // one sentence for a person
	Notice  string `json:"notice,omitempty"` // what the operator has to say
	// RetryAfter asks the client to wait this many seconds; 0 leaves it to the client.
	RetryAfter int      `json:"retry_after,omitempty"`
	Missing    []string `json:"missing,omitempty"` // hex names, at most 256, with CodeMissing
	Chain      *Chain   `json:"chain,omitempty"`   // with CodeStaleChain
	Cap        *Cap     `json:"cap,omitempty"`     // with CodeCapExceeded
}

// Cap is what a machine may store a day, and what it stored of that.
type Cap struct {
	Bytes      uint64    `json:"bytes,omitempty"`  // as holdfast.Billed counts them; 0 for no cap
	Blocks     uint64    `json:"blocks,omitempty"` // 0 for no cap
	UsedBytes  uint64    `json:"used_bytes"`
	UsedBlocks uint64    `json:"used_blocks"`
	Resets     time.Time `json:"resets"` // when the next day begins
}

func (e *Error) Error() string {
	if e.Notice != "" {
		return fmt.Sprintf("%s (notice from the operator: %s)", e.Message, e.Notice)
	}
	return e.Message
}

// CodeOf returns the code of the *Error in err's chain, or "" if there is none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// MaxMissing bounds the names in Error.Missing; there may be more.
const MaxMissing = 256

// compile-time reminder that the path prefix follows the protocol's version
var _ = [1]struct{}{}[holdfast.ProtocolVersion-1]
