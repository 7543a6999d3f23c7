package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"holdfast"
	"holdfast/service/billing"
	"holdfast/service/ledger"
	"holdfast/service/view"
	"holdfast/wire"
)

// Money is how an account stands. Amounts are decimal numbers of the currency.
type Money struct {
	Currency string `json:"currency"`
	Charged  bool   `json:"charged"` // anything costs anything
	Balance  string `json:"balance"`
	Daily    string `json:"daily"` // what keeping everything that it stores costs a day
	// Step is how far the account has come that is not paid, 0 to 10, and Words says the same.
	Step  ledger.Step `json:"step"`
	Words string      `json:"words"`
	// Left is how many days are left until writing stops, or, once it has, until archives are deleted; End is when that is. There
	// is none of both if no end is in sight.
	Left  *int64    `json:"days_left,omitempty"`
	End   time.Time `json:"end,omitzero"`
	Since time.Time `json:"since,omitzero"` // of the step
	Told  time.Time `json:"told,omitzero"`  // when the owner was told of it
}

// Paid is what a payment did.
type Paid struct {
	Known   bool    `json:"known"` // it was booked before, and nothing changed
	Account Account `json:"account"`
}

// Warning is what the owner of an account was not told yet.
type Warning struct {
	// ID is the same whenever the same is told.
	ID       string      `json:"id"`
	Name     string      `json:"name"`
	Account  string      `json:"account"` // its id
	Step     ledger.Step `json:"step"`
	Words    string      `json:"words"`
	Since    time.Time   `json:"since"`
	Left     int64       `json:"days_left"`
	End      time.Time   `json:"end"`
	Balance  string      `json:"balance"`
	Currency string      `json:"currency"`
}

// Warnings answers who was not told yet.
type Warnings struct {
	Warnings []Warning `json:"warnings"`
}

// Waiting says how many warnings were not told, counted up to MaxWarnings, and since when the oldest of these.
type Waiting struct {
	Count int       `json:"count"`
	Since time.Time `json:"since"`
}

// MaxWarnings bounds the warnings in one answer, and up to which number Waiting counts.
const MaxWarnings = 1000

// Credited is what crediting an outage did, or would do.
type Credited struct {
	Accounts int    `json:"accounts"` // that are given something
	Known    int    `json:"known"`    // of these: that had it before
	Sum      string `json:"sum"`      // of all
	Currency string `json:"currency"`
}

// Transfers answers some transfers in the order of their numbers.
type Transfers struct {
	Currency  string     `json:"currency"`
	Transfers []Transfer `json:"transfers"`
}

// Transfer is an amount that went from one book to another.
type Transfer struct {
	Number uint64    `json:"number"` // 1, 2, 3, ...
	Time   time.Time `json:"time"`
	ID     string    `json:"id"`
	From   Book      `json:"from"`
	To     Book      `json:"to"`
	Amount string    `json:"amount"`
	Text   string    `json:"text"`
}

// Book is one side of a transfer.
type Book struct {
	Kind string `json:"kind"`           // as ledger.Kind prints it
	Name string `json:"name,omitempty"` // of a customer's account
}

// maxTransfers bounds the transfers in one answer.
const maxTransfers = 500

// errCurrency refuses what is about money that has no name.
var errCurrency = errors.New("no currency is set; say currency = \"EUR\" below [money] in config.toml, and start the service again")

// inCurrency refuses what h does while there is no currency.
func (s *Server) inCurrency(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.Money.Currency() == "" {
			reply(w, nil, errCurrency)
			return
		}
		h(w, r)
	}
}

func utc(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func (s *Server) moneyOf(l billing.Line) *Money {
	m := Money{
		Currency: s.Money.Currency(), Charged: s.Money.Charges(), Balance: l.Balance.String(), Daily: l.Daily.String(),
		Step: l.Standing.Step, Words: l.Standing.Step.String(), Since: utc(l.Standing.Since), Told: utc(l.Standing.Told),
	}
	if s.Money.Charges() && l.Left < ledger.ManyDays {
		m.Left, m.End = &l.Left, l.End
	}
	return &m
}

// account returns what is known of the account of a name.
func (s *Server) account(name string) (Account, error) {
	l, err := s.Money.Account(name)
	if err != nil {
		return Account{}, noAccount(err, name)
	}
	a, err := s.usage(l.Account)
	a.Money = s.moneyOf(l)
	return a, err
}

// noAccount says what to do about an account that is not there.
func noAccount(err error, name string) error {
	if errors.Is(err, view.ErrNoAccount) {
		return fmt.Errorf("there is no account %q; make it with holdfastd account add", name)
	}
	return err
}

type payRequest struct {
	Name   string `json:"name"`
	ID     string `json:"id"`
	Amount string `json:"amount"`
	Text   string `json:"text"`
}

func (s *Server) pay(w http.ResponseWriter, r *http.Request) {
	var q payRequest
	err := json.NewDecoder(io.LimitReader(r.Body, wire.MaxJSON)).Decode(&q)
	if err != nil {
		reply(w, nil, fmt.Errorf("read request: %w", err))
		return
	}
	amount, err := ledger.Parse(q.Amount)
	if err != nil {
		reply(w, nil, err)
		return
	}
	_, known, err := s.Money.Pay(r.Context(), q.Name, q.ID, amount, q.Text)
	if errors.Is(err, view.ErrTransfer) {
		err = s.booked(q.ID)
	}
	if err != nil {
		reply(w, nil, noAccount(err, q.Name))
		return
	}
	a, err := s.account(q.Name)
	reply(w, Paid{known, a}, err)
}

// booked says what a payment's id stands for already.
func (s *Server) booked(id string) error {
	t, ok, err := s.Journal.Acked().Transfer("payment:" + id)
	if err != nil || !ok {
		return errors.Join(fmt.Errorf("%w: %q", view.ErrTransfer, id), err)
	}
	what, b := "a payment", t.To
	if t.To.Kind != ledger.Customer {
		what, b = "a refund", t.From
	}
	a, _, err := s.Journal.Acked().Account(b.Account)
	if err != nil {
		return err
	}
	return fmt.Errorf("%q is the id of %s of %s %s, account %q, text %q, that was booked at %s; nothing was booked now",
		id, what, t.Amount, s.Money.Currency(), a.Name, t.Text, utc(t.Time).Format(time.RFC3339))
}

func (s *Server) warnings(w http.ResponseWriter, r *http.Request) {
	all, err := s.Money.Warnings(r.URL.Query().Get("after"), MaxWarnings)
	a := Warnings{Warnings: []Warning{}}
	for _, l := range all {
		a.Warnings = append(a.Warnings, Warning{
			ID:   fmt.Sprintf("%s-%d-%d", l.ID, l.Standing.Step, l.Standing.Since),
			Name: l.Name, Account: l.ID.String(), Step: l.Standing.Step, Words: l.Standing.Step.String(), Since: utc(l.Standing.Since),
			Left: l.Left, End: l.End, Balance: l.Balance.String(), Currency: s.Money.Currency(),
		})
	}
	reply(w, a, err)
}

// waiting counts the warnings that were not told; it is nil if there are none. Where nothing
// costs anything, it does not look through all accounts.
func (s *Server) waiting() (*Waiting, error) {
	if !s.Money.Charges() {
		return nil, nil
	}
	all, err := s.Money.Warnings("", MaxWarnings)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	w := Waiting{Count: len(all), Since: utc(all[0].Standing.Since)}
	for _, l := range all {
		if t := utc(l.Standing.Since); t.Before(w.Since) {
			w.Since = t
		}
	}
	return &w, nil
}

type toldRequest struct {
	Name string      `json:"name"`
	Step ledger.Step `json:"step"`
}

type toldAnswer struct {
	// Moved says that the account stands elsewhere by now, so that nothing was noted.
	Moved bool `json:"moved"`
}

func (s *Server) told(w http.ResponseWriter, r *http.Request) {
	var q toldRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, wire.MaxJSON)).Decode(&q); err != nil {
		reply(w, nil, fmt.Errorf("read request: %w", err))
		return
	}
	err := s.Money.Told(r.Context(), q.Name, q.Step)
	moved := errors.Is(err, view.ErrStep)
	if moved {
		err = nil
	}
	reply(w, toldAnswer{moved}, err)
}

// credit credits an outage; with dry it says what that would come to.
func (s *Server) credit(dry bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		hours, err := strconv.Atoi(r.URL.Query().Get("hours"))
		if err != nil {
			reply(w, nil, billing.ErrHours)
			return
		}
		c, err := s.Money.Credit(r.Context(), r.URL.Query().Get("incident"), hours, dry)
		reply(w, Credited{c.Accounts, c.Known, c.Sum.String(), s.Money.Currency()}, err)
	}
}

func (s *Server) transfers(w http.ResponseWriter, r *http.Request) {
	after, err := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
	if err != nil {
		reply(w, nil, fmt.Errorf("read request: %w", err))
		return
	}
	all, err := s.Money.Transfers(after, maxTransfers)
	a := Transfers{Currency: s.Money.Currency(), Transfers: []Transfer{}}
	for _, t := range all {
		a.Transfers = append(a.Transfers, Transfer{
			Number: t.Number, Time: utc(t.Time), ID: t.ID, Amount: t.Amount.String(), Text: t.Text,
			From: Book{t.From.Kind.String(), t.FromName}, To: Book{t.To.Kind.String(), t.ToName},
		})
	}
	reply(w, a, err)
}

// usage returns what an account stores.
func (s *Server) usage(a view.Account) (Account, error) {
	u, err := s.Journal.Acked().Usage(a.ID, 0)
	return Account{
		Name: a.Name, ID: a.ID.String(), Blocks: u.Blocks, StoredBytes: u.Bytes, BilledBytes: u.Billed, Asked: u.Asked + s.Service.Asked(a.ID),
	}, err
}

// listed returns how an account stands, for the list of all; nil if nothing costs anything.
func (s *Server) listed(id holdfast.AccountID) *Money {
	l, _, ok := s.Money.Of(s.Journal.Acked(), id)
	if !ok {
		return nil
	}
	return s.moneyOf(l)
}

// GetAccount asks the service on dir about one account.
func GetAccount(ctx context.Context, dir, name string) (a Account, err error) {
	err = ask(ctx, dir, http.MethodGet, "/account?name="+url.QueryEscape(name), nil, &a)
	return a, err
}

// Pay tells the service on dir that an account paid an amount, a decimal number, or was paid back one below zero, under the id of
// that payment. The same again changes nothing.
func Pay(ctx context.Context, dir, name, id, amount, text string) (p Paid, err error) {
	err = ask(ctx, dir, http.MethodPost, "/payments", payRequest{name, id, amount, text}, &p)
	return p, err
}

// GetWarnings asks the service on dir for the warnings that were not told, at most MaxWarnings of those of accounts after a
// name. If they are to be told, a service that cannot note that refuses.
func GetWarnings(ctx context.Context, dir, after string, tell bool) ([]Warning, error) {
	var a Warnings
	path := "/warnings?after=" + url.QueryEscape(after)
	if tell {
		path += "&tell=1"
	}
	err := ask(ctx, dir, http.MethodGet, path, nil, &a)
	return a.Warnings, err
}

// Told tells the service on dir that a warning was told. It reports that the account stands elsewhere by now: then that
// is not noted.
func Told(ctx context.Context, dir string, w Warning) (moved bool, err error) {
	var a toldAnswer
	err = ask(ctx, dir, http.MethodPost, "/warnings", toldRequest{w.Name, w.Step}, &a)
	return a.Moved, err
}

// Credit has the service on dir credit an outage of so many hours; with dry it says what that would come to.
func Credit(ctx context.Context, dir, incident string, hours int, dry bool) (c Credited, err error) {
	method := http.MethodPost
	if dry {
		method = http.MethodGet
	}
	err = ask(ctx, dir, method, fmt.Sprintf("/credit?hours=%d&incident=%s", hours, url.QueryEscape(incident)), nil, &c)
	return c, err
}

// GetTransfers asks the service on dir for some transfers, the first of them the one after number after; none if there are no
// more.
func GetTransfers(ctx context.Context, dir string, after uint64) (t Transfers, err error) {
	err = ask(ctx, dir, http.MethodGet, fmt.Sprintf("/transfers?after=%d", after), nil, &t)
	return t, err
}
