/*
promise.pml: a block of which the service said "I have it" does not vanish before the session ends. JOURNAL 15 and 17;
scenarios S6, S10. In the program: view.Block.Promised, applyCondemned in service/view, and the sessions that
service/journal keeps; TestScenarioS10FreedWhileNeeded walks the same orders with the real code.

A dead root D links to C, so C has one reference as long as D is there. Two sessions open and close; a job condemns D, then
C. `since` is the journal time at which a block's count became 0. A block is had if it has references, or since > start of
the session - KEEP. It may be condemned if it has none and since < start of the oldest open session - KEEP, strictly. When D
goes, C's since becomes now - KEEP. A session may also send C without having asked: it is told that C is known if C has
references or since > now - KEEP, and otherwise C is stored anew, beside the old copy, and since is now.

Assumed: one vault, two sessions, one crash, a few ticks of journal time; a session does not survive a crash; asking changes
nothing that is durable.
Promised: C is not condemned while a session is open that was told that C is there.

@holds the rule:
@fails TIE:        -DV_TIE
@fails INHERIT:    -DV_INHERIT
@fails SESSLIVES:  -DV_SESSLIVES
@fails KNOWN:      -DV_KNOWN
@fails reached:    -DREACHED

TIE compares with <=. INHERIT gives C the age that D had. SESSLIVES lets clients carry on with a session that the
service forgot in a crash. KNOWN calls C known however old it is. "reached" shows that C is condemned at all while a session is open.
*/
#define LAST 9    /* journal time ends here */
#define KEEP 2

byte now = 4;
bool D = true, C = true;
byte sinceD = 4, sinceC = 4;
bool open[2], known[2];         /* the client uses the session; the service knows of it */
byte start[2];
bool told[2];                   /* ... that C is there */
bool crashed;
hidden byte oldest;

inline find_oldest() {
  oldest = now;
  if :: known[0] && start[0] < oldest -> oldest = start[0] :: else fi;
  if :: known[1] && start[1] < oldest -> oldest = start[1] :: else fi
}

#define HAD(s)      (C && (D || sinceC + KEEP > start[s]))
#ifdef V_KNOWN
#define KNOWN       (C)
#else
#define KNOWN       (C && (D || sinceC + KEEP > now))
#endif
#ifdef V_TIE
#define OLD(since)  (since + KEEP <= oldest)
#else
#define OLD(since)  (since + KEEP < oldest)
#endif

proctype session(byte s) {
  do
  :: d_step { !open[s] && start[s] == 0 -> open[s] = true; known[s] = true; start[s] = now }
  :: d_step { open[s] && !told[s] && HAD(s) -> told[s] = true }
  :: d_step { open[s] && known[s] && !told[s] && C ->
       if :: KNOWN :: else -> sinceC = now fi;
       told[s] = true }
  :: d_step { open[s] -> open[s] = false; known[s] = false; told[s] = false }
  od
}

proctype world() {
  do
  :: d_step { now < LAST -> now++ }
  :: d_step { !crashed -> crashed = true; known[0] = false; known[1] = false;
#ifndef V_SESSLIVES
       open[0] = false; open[1] = false; told[0] = false; told[1] = false;
#endif
       skip }
  od
}

proctype reclaim() {
  do
  :: d_step { D && sinceD < now -> find_oldest();
       if
       :: OLD(sinceD) -> D = false;
#ifdef V_INHERIT
          sinceC = sinceD
#else
          sinceC = now - KEEP
#endif
       :: else
       fi; oldest = 0 }
  :: d_step { C && !D -> find_oldest();
       if :: OLD(sinceC) -> C = false; assert(!told[0] && !told[1]);
#ifdef REACHED
          assert(!known[0] && !known[1])
#endif
       :: else fi; oldest = 0 }
  od
}

init { atomic { run session(0); run session(1); run world(); run reclaim() } }
