/*
remove.pml: bundles, deleting, and two owners. JOURNAL 8, 12, 18 to 20; scenarios S4, S5, S6, S8. In the program: Bundle and
Remove in service/journal; TestScenarioS6 and TestScenarioS10 there walk the same orders with the real code.

Segment X of a closed epoch holds block C, which an archive needs. An owner moves C into a segment of its own, records that
X is retired, copies trailers into a bundle, deletes X, and records that X is removed. What else holds nothing is retired and
deleted likewise. At any moment another owner takes over and does the same; the first one is only paused, and goes on.

 - A segment and a bundle land at any time after they were sent, or never. X lands once more at any time. A delete lands
   at any time after it was sent, and again and again.
 - A bundle covers the journal from its beginning up to some segment. A larger one absorbs it: the smaller is deleted.
 - Lists are not atomic. A start lists the segments first and the bundles after them.

Assumed: what owner.pml shows of acknowledging: an owner acknowledges only while it owns the epoch, in one step. Grace: no
fetch takes as long as the time between retired and delete.
Promised: whoever rebuilds from the bucket, at any moment, finds all that was acknowledged in one unbroken chain, and C's bytes
where the last record about it says; a start finds that, too; no bundle has what the journal has not; and a fetch finds
what it was told, even if that was retired meanwhile.

@holds the rules:
@holds first owner goes on:  -DNA=4 -DNB=1
@holds a fetch:              -DFETCH
@large the first goes far:   -DNA=4
@large the second goes far:  -DNB=3
@fails UNACKED:              -DV_UNACKED
@fails UNBUNDLED:            -DV_UNBUNDLED
@fails NOREADBACK:           -DV_NOREADBACK
@fails ABSORB:               -DV_ABSORB
@fails AHEAD:                -DV_AHEAD
@fails BLINDRET:             -DV_BLINDRET
@fails TAKEOVER:             -DV_TAKEOVER
@fails LATE:                 -DV_LATE
@fails NOGRACE:              -DFETCH -DV_NOGRACE
@fails BUNDLESFIRST:         -DNA=4 -DNB=1 -DV_BUNDLESFIRST
@fails reached:              -DNB=3 -DREACHED

UNACKED deletes when the retired record is appended. UNBUNDLED deletes without a bundle. NOREADBACK deletes when the bundle was
sent, and ABSORB the smaller bundle when the larger one was sent. AHEAD bundles what is not acknowledged. BLINDRET retires a
segment without looking whether something lives there. TAKEOVER retires the takeover record of the newest epoch, by
which everybody finds that epoch. LATE deletes, as a landing that came late, whatever has no row in the view: also what
is not acknowledged yet. NOGRACE deletes while a fetch is under way that was told that place. BUNDLESFIRST lists bundles
before segments, and does not find what was bundled and deleted in between: a loss, or worse, the end of the journal. "reached"
shows that the second owner starts with all of the first one's, after a smaller bundle was absorbed, and removes a segment of it.
*/
#define X       0               /* places: X, then the segments of epoch 1, then those of epoch 2 */
#ifndef NA
#define NA      3
#endif
#ifndef NB
#define NB      2
#endif
#define LAST    (1 + NA + NB)
#define BIT(s)  (1 << (s))
#define UPTO(n) ((1 << (n)) - 1)
#define FIRST(e) (e == 1 -> 1 : 1 + NA)
#define SIZE(e)  (e == 1 -> NA : NB)

mtype = { TAKE, MOVE, RETIRE, REMOVED };
mtype rec[LAST]; byte arg[LAST];   /* the record of each segment, once it is appended */
byte epoch = 1;
byte count[3], acked[3];           /* segments of each epoch: appended, acknowledged */
byte base;                         /* how many of epoch 1 the second takeover record accepts */
bool started;                      /* ... once there is one */
byte bucket = 1;                   /* the segments that are there: X */
byte sent = 1, known, doomed;       /* segments: puts, of which some landed, and deletes; X lands once more */
byte bsent[3], bundles[3], bdoomed[3];  /* bundles of each owner, by how much of its epoch they cover; of the first, X also */
byte fetching;                     /* the place that a fetch was told, plus 1 */
bool absorbed;                     /* only for REACHED */

hidden byte i, n, E, place, retired, removed;    /* scratch, 0 between steps */
#define FORGET i = 0; n = 0; E = 0; place = 0; retired = 0; removed = 0

/* what the journal says up to and with its segment number n of epoch e */
inline replay(e, last) {
  place = X; retired = 0; removed = 0; i = 1;
  do
  :: i >= LAST || (i > NA && (e == 1 || i >= 1 + NA + last)) -> break
  :: else ->
     if
     :: i <= NA && ((e == 1 && i > last) || (e == 2 && i > base)) -> skip
     :: else ->
        if
        :: rec[i] == MOVE    -> if :: place == arg[i] -> place = i :: else fi
        :: rec[i] == RETIRE  -> retired = retired | BIT(arg[i])
        :: rec[i] == REMOVED -> removed = removed | BIT(arg[i])
        :: else
        fi
     fi;
     i++
  od
}

/* somebody rebuilds by hand, from the bucket as it is just now; the newest epoch is the one whose first segment is there */
inline check() {
  d_step {
    E = (bucket & BIT(1+NA) -> 2 : 1);
    assert(bundles[1] < BIT((started -> base : NA)+1));      /* no bundle has what the journal has not */
    n = NA; do :: n > 0 && !(bundles[1] & BIT(n)) -> n-- :: else -> break od;
    if :: E == 2 && bundles[2] -> n = base :: else assert((bucket & BIT(X)) || bundles[1]) fi;
    do :: n < (E == 1 -> NA : base) && (bucket & BIT(1+n)) -> n++ :: else -> break od;
    assert(n >= acked[1]);
    if
    :: E == 1 -> assert(acked[2] == 0)
    :: else ->
       assert(n == base);
       n = NB; do :: n > 0 && !(bundles[2] & BIT(n)) -> n-- :: else -> break od;
       do :: n < NB && (bucket & BIT(1+NA+n)) -> n++ :: else -> break od;
       assert(n >= acked[2])
    fi;
    replay(E, n);
    assert(bucket & BIT(place));
#ifdef REACHED
    assert(!(absorbed && base == 3 && acked[2] == 3 && (removed & 2)));
#endif
    FORGET
  }
}

inline append(w, x) {
  rec[FIRST(me)+count[me]] = w; arg[FIRST(me)+count[me]] = x;
  sent = sent | BIT(FIRST(me)+count[me]); count[me]++
}

#define ROOM (count[me] < SIZE(me))
/* place q is covered by a set of the first owner's bundles, of the second's */
#define IN1(set, q)  ((set) >= BIT(q == X -> 0 : q))
#define IN2(set, q)  (me == 2 && (set) >= BIT(q > NA -> q - NA : 1))
#define SENT1        (bsent[1] | bundles[1])
#define SENT2        (bsent[2] | bundles[2])
#if defined(V_UNBUNDLED)
#define BUNDLED(q)   true
#elif defined(V_NOREADBACK)
#define BUNDLED(q)   (IN1(SENT1, q) || IN2(SENT2, q))
#else
#define BUNDLED(q)   (IN1(bundles[1], q) || IN2(bundles[2], q))
#endif
#ifdef V_BLINDRET
#define LIVES(q)     false
#else
#define LIVES(q)     (place == q)
#endif
#define KNOWN(q)     (me == 1 || q <= base || q > NA)
#ifdef V_TAKEOVER
#define NEWEST(q)    false
#else
#define NEWEST(q)    (q == FIRST(me))
#endif
#ifdef V_NOGRACE
#define UNDERWAY(q)  false
#else
#define UNDERWAY(q)  (fetching == q + 1)
#endif

#ifdef V_ABSORB
#define BEST1        SENT1
#define BEST2        SENT2
#else
#define BEST1        bundles[1]
#define BEST2        bundles[2]
#endif

proctype owner(byte me) {
  byte q, seen, had;
  if
  :: me == 2 ->
     atomic { epoch == 1 -> epoch = 2 }
#ifdef V_BUNDLESFIRST
     d_step { had = bundles[1] };
#endif
     do :: q <= NA -> d_step { seen = seen | (bucket & BIT(q)); q++ } :: else -> break od;
#ifndef V_BUNDLESFIRST
     q = 0; do :: q <= NA -> d_step { had = had | (bundles[1] & BIT(q)); q++ } :: else -> break od;
#endif
     q = 0;
     atomic { d_step {
       q = NA; do :: q > 0 && !(had & BIT(q)) -> q-- :: else -> break od;
       do :: q < NA && (seen & BIT(1+q)) -> q++ :: else -> break od;
       assert((seen & BIT(X)) || had);
       assert(acked[1] <= q);
       base = q; started = true; q = 0; seen = 0; had = 0
     }; check() }
  :: else
  fi;
  d_step { append(TAKE, 0) };
  do
  :: atomic { epoch == me && acked[me] < count[me] && (known & BIT(FIRST(me)+acked[me])) -> acked[me]++; check() }
  :: d_step { ROOM && acked[me] > 0 -> replay(me, count[me]);
       if :: place < FIRST(me) -> append(MOVE, place) :: else fi; FORGET }
  :: atomic { ROOM && acked[me] > 0 ->
       select(q : 0 .. FIRST(me)+count[me]-1);
       d_step { replay(me, count[me]);
         if
         :: !(retired & BIT(q)) && KNOWN(q) && !LIVES(q) && !NEWEST(q) -> append(RETIRE, q)
         :: else
         fi; q = 0; FORGET } }
  :: atomic { acked[me] > 0 ->
       select(q : 0 .. FIRST(me)+count[me]-1);
       d_step {
#ifdef V_UNACKED
         replay(me, count[me]);
#else
         replay(me, acked[me]);
#endif
         if
         :: (retired & ~doomed & BIT(q)) && BUNDLED(q) && !UNDERWAY(q) -> doomed = doomed | BIT(q)
         :: (retired & BIT(q)) && (doomed & BIT(q)) && !(bucket & BIT(q)) && !(removed & BIT(q)) && ROOM ->
            replay(me, count[me]);
            if :: !(removed & BIT(q)) -> append(REMOVED, q) :: else fi
         :: else
         fi; q = 0; FORGET } }
#ifdef V_AHEAD
  :: d_step { !((bsent[me] | bundles[me]) & BIT(count[me])) -> bsent[me] = bsent[me] | BIT(count[me]) }
#else
  :: d_step { acked[me] > 0 && bsent[me] + bundles[me] < BIT(acked[me]) -> bsent[me] = bsent[me] | BIT(acked[me]) }
#endif
  :: d_step { BEST1 || BEST2 ->                    /* the largest absorbs the others */
       n = BEST1; do :: n & (n-1) -> n = n & (n-1) :: else -> break od;
       if :: n -> bdoomed[1] = bdoomed[1] | (bundles[1] & (n-1)) :: else fi;
       if :: me == 2 && BEST2 -> n = BEST2; bdoomed[1] = bdoomed[1] | bundles[1];
             do :: n & (n-1) -> n = n & (n-1) :: else -> break od;
             bdoomed[2] = bdoomed[2] | (bundles[2] & (n-1))
       :: else fi;
       n = 0 }
#ifdef V_LATE
  :: atomic { acked[me] > 0 -> select(q : FIRST(me) .. FIRST(me)+SIZE(me)-1);
       d_step { if :: (bucket & BIT(q)) && q >= FIRST(me)+acked[me] -> doomed = doomed | BIT(q) :: else fi; q = 0 } }
#endif
  od
}

/* everything that is under way */
proctype net() {
  byte s, e;
  do
  :: atomic { select(s : 0 .. LAST-1); if :: sent & ~bucket & ~known & BIT(s) -> bucket = bucket | BIT(s); known = known | BIT(s) :: else fi; s = 0; check() }
  :: atomic { select(s : 0 .. LAST-1); if :: doomed & bucket & BIT(s) -> bucket = bucket - BIT(s) :: else fi; s = 0; check() }
  :: atomic { select(e : 1 .. 2); select(s : 0 .. NA);
       if :: bsent[e] & BIT(s) -> bundles[e] = bundles[e] | BIT(s); bsent[e] = bsent[e] - BIT(s) :: else fi; s = 0; e = 0; check() }
  :: atomic { select(e : 1 .. 2); select(s : 0 .. NA);
       if :: bdoomed[e] & bundles[e] & BIT(s) -> bundles[e] = bundles[e] - BIT(s); absorbed = true :: else fi; s = 0; e = 0; check() }
  od
}

#ifdef FETCH
active proctype fetch() {
  do
  :: d_step { fetching == 0 -> E = (acked[2] > 0 -> 2 : 1); replay(E, acked[E]); fetching = place + 1; FORGET }
  :: d_step { fetching > 0 -> assert(bucket & BIT(fetching - 1)); fetching = 0 }
  od
}
#endif

init { atomic { run owner(1); run owner(2); run net() } }
