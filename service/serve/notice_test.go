package serve

import (
	"errors"
	"testing"

	"holdfast"
	"holdfast/wire"
)

// TestNotice: what the operator has to say comes with every hello and every refusal, to whomever, as it is at that
// moment; refusals that are shared between requests keep nothing of it.
func TestNotice(t *testing.T) {
	inWorld(t, func(w *world) {
		says := ""
		w.srv.notice = func() string { return says }
		anna, nobody := w.customer("anna", holdfast.RightsAll), w.stranger()
		for _, says = range []string{"", "Maintenance until noon.", "Maintenance is over.", ""} {
			for who, c := range map[string]*client{"a machine": anna, "a stranger": nobody} {
				if got := c.hello().Notice; got != says {
					w.Errorf("hello tells %s %q, want %q", who, got, says)
				}
				// One of these refusals is made for the request, one is shared.
				for _, path := range []string{wire.PathHistory + "?after=x", "/nowhere", wire.Prefix + "/sessions/00/have"} {
					_, err := c.do("POST", path, nil)
					var e *wire.Error
					if !errors.As(err, &e) || e.Notice != says {
						w.Errorf("%s is refused %s with %v, want the notice %q", who, path, err, says)
					}
				}
			}
		}
		if errUnknownKey.Notice != "" || errSessionGone.Notice != "" {
			w.Error("a notice sticks to refusals")
		}
	})
}
