package serve

import (
	"net/http"
	"runtime/debug"
)

// faults lets a panic in a request end that request only, and logs it with its stack: a stranger may have found
// it, and must not end the service.
func (s *Server) faults(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch e := recover(); e {
			case nil:
			case http.ErrAbortHandler:
				panic(e)
			default:
				s.log.Error("a fault in the program ended a request", "request", r.Pattern, "fault", e, "stack", string(debug.Stack()))
				panic(http.ErrAbortHandler)
			}
		}()
		h.ServeHTTP(w, r)
	})
}
