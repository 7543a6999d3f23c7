/*
owner.pml: who may say that a segment is kept. JOURNAL 2, 3, 4, 5, 7, 8 and 10; scenarios S5, S7, S8.

Each epoch is claimed by one process; they run at the same time, and each can be paused between any two steps for
as long as one likes, or for ever (a crash). Segment 0 of an epoch is its takeover record, which carries the last
segment that it accepts; through it hang all earlier epochs. Segment 1 stands for a copy of the last live block out
of an old object X, segment 2 for the record that retires X.

Assumed:
 - The store is strongly consistent for one key: what is in the bucket is seen. LIST is NOT atomic: it shows each key as
   it is at some moment between its begin and its end.
 - Every put that an owner will ever make is under way from the moment at which its list ended, lands in any order, at
   any time, any number of times (two attempts, two nonces), or never, whatever became of its owner. That is more than the
   program does, which has two at a time and writes its takeover record first.
 - A delete that was sent can land at any time after, and again and again.
 - Reading the epoch object and looking at what is durable is one step. The program looks first and reads then: it
   knows of less.
 - With PAGES a list shows all segments of one epoch at one moment, and each epoch at its own.
 - The claim is one step; claim.pml takes it apart. All landings of a segment have equal bytes: twin.pml.

Promised, whenever a segment is acknowledged or deleted, for every owner whose takeover record is acknowledged:
 - the segments that it acknowledged, and all that it accepted, are in the bucket;
 - whatever any earlier owner acknowledged is among them;
 - if X is deleted, and it came later than who deleted X, it knows that X is retired.
And a start finds its own view on the chain that it accepts.

@holds two owners:            -DNE=2
@holds two owners, X:         -DNE=2 -DRETIRE
@holds two owners, view:      -DNE=2 -DVIEW
@holds two owners, reader:    -DNE=2 -DREADER
@holds two owners, sweep:     -DNE=2 -DSWEEP
@holds three owners, sweep:   -DNE=3 -DNS=2 -DSWEEP
@large three owners:          -DNE=3 -DNS=3
@large three owners, X:       -DNE=3 -DNS=3 -DRETIRE -DPAGES
@large three owners, view:    -DNE=3 -DNS=3 -DVIEW -DPAGES
@fails NOREAD:                -DNE=2 -DV_NOREAD
@fails PERSEG:                -DNE=2 -DV_PERSEG
@fails LISTFIRST:             -DNE=2 -DV_LISTFIRST
@fails LISTONCE:              -DNE=3 -DNS=2 -DV_LISTONCE
@fails CONTIG:                -DNE=2 -DREADER -DV_CONTIG
@fails DELEARLY:              -DNE=2 -DRETIRE -DV_DELEARLY
@fails VIEWAHEAD:             -DNE=2 -DVIEW -DV_VIEWAHEAD
@fails SWEEPEARLY:            -DNE=3 -DNS=2 -DSWEEP -DV_SWEEPEARLY
@fails SWEEPOWN:              -DNE=2 -DNS=2 -DSWEEP -DV_SWEEPOWN
@fails reached:               -DNE=3 -DNS=2 -DSWEEP -DREACHED

NOREAD acknowledges what is durable without reading the epoch object. PERSEG lets a read count for a segment although
an earlier one became durable only after it. LISTFIRST lists before it claims. LISTONCE does not list again when the
list lacks what the newest takeover record accepts, and takes a list that is not atomic for a loss. CONTIG takes a
closed epoch to be what a list shows, not what the takeover record says. DELEARLY deletes X when the record that
retires it is durable and the epoch was read once, but before that. VIEWAHEAD lets the view have segments that are not
acknowledged. SWEEPEARLY empties the quarantine before its own takeover record is acknowledged. SWEEPOWN takes what
lies beyond the acknowledged in its own epoch for quarantine. "reached" shows that the interesting is not out of
reach: an owner in between left no trace and its takeover record was swept.
*/
#ifndef NE
#define NE 2
#endif
#ifndef NS
#define NS 3
#endif
#define BIT(s)    (1 << (s))
#define UPTO(n)   ((1 << (n)) - 1)   /* the first n segments */

byte epoch;            /* the epoch object */
byte bucket[NE+1];     /* which segments of each epoch are there */
bool sending[NE+1];    /* the puts of this owner are under way */
byte doomed[NE+1];     /* deletes of segments that are under way */
byte baseE[NE+1];      /* the takeover record: the last epoch that it accepts, 0 for none, ... */
byte baseS[NE+1];      /* ... and the last segment of it */
byte acked[NE+1];      /* how many segments are acknowledged */
bool xdoomed, xgone;   /* X: its delete is sent, has landed */
byte xby;              /* who sent it */
byte viewE, viewS;     /* what the view on disk contains last; 0: nothing */
bool sweptTakeover;    /* only for REACHED */

hidden byte E, k, ce, cs, knows;    /* scratch, 0 between steps */

/* what is promised, for the owner E */
inline promised() {
  if
  :: acked[E] > 0 ->
     assert((bucket[E] & UPTO(acked[E])) == UPTO(acked[E]));
     knows = (acked[E] >= 3);
     ce = baseE[E]; cs = baseS[E]; k = E;
     do
     :: k <= 1 -> break
     :: else ->
        k--;
        if
        :: k == ce ->
           assert((bucket[k] & UPTO(cs+1)) == UPTO(cs+1));
           assert(acked[k] <= cs + 1);
           if :: cs >= 2 -> knows = 1 :: else fi;
           ce = baseE[k]; cs = baseS[k]
        :: else -> assert(acked[k] == 0)
        fi
     od;
     assert(!(xgone && E > xby && !knows))
  :: else
  fi
}
inline check() {
  d_step {
    E = NE;
    do :: E == 0 -> break :: else -> promised(); E-- od;
#ifdef REACHED
    assert(!(sweptTakeover && acked[NE] > 0 && baseE[NE] == 1 && baseS[NE] > 0));
#endif
    k = 0; ce = 0; cs = 0; knows = 0
  }
}

/* n = length of the run of ones at the beginning of set */
inline run_of(set, n) { n = 0; do :: n < NS && (set & BIT(n)) -> n++ :: else -> break od }

/* seen = what a list shows */
inline list(me) {
#ifdef PAGES
  i = 1; do :: i < me -> d_step { seen[i] = bucket[i]; i++ } :: else -> break od;
#else
  i = NS; do :: i < me*NS -> d_step { seen[i/NS] = seen[i/NS] | (bucket[i/NS] & BIT(i%NS)); i++ } :: else -> break od;
#endif
  i = 0
}

/* make the takeover record from what was seen; whole: all that the newest takeover record accepts was seen */
inline accept(me) {
  d_step {
    i = me - 1;
    do :: i == 0 || (seen[i] & 1) -> break :: else -> i-- od;
    baseE[me] = i;
    if :: i > 0 -> run_of(seen[i], n); baseS[me] = n - 1 :: else fi;
    whole = 1;
    ce = i; cs = baseS[me];
    do
    :: ce == 0 -> break
    :: else ->
       if :: (seen[ce] & UPTO(cs+1)) != UPTO(cs+1) -> whole = 0 :: else fi;
       if :: viewE == ce -> knows = 1; assert(viewS <= cs) :: else fi;
       cs = baseS[ce]; ce = baseE[ce]
    od;
    assert(viewE == 0 || viewE >= me || knows);        /* our view lies on the chain, or the start refuses */
#ifdef V_LISTONCE
    assert(whole);
#endif
    knows = 0; ce = 0; cs = 0; n = 0;
    i = 0; do :: i <= NE -> seen[i] = 0; i++ :: else -> break od; i = 0;
    sending[me] = whole
  }
}

proctype owner(byte me) {
  byte seen[NE+1];
  byte i, n, whole;
  byte saw;      /* the epoch object at the last read of it */
  byte had;      /* what was durable when that read began */

#ifdef V_LISTFIRST
  (epoch == me-1); list(me); (epoch == me-1) -> epoch = me;
#else
  atomic { epoch == me-1 -> epoch = me }
again:
  list(me);
#endif
  accept(me);
#ifndef V_LISTFIRST
  if :: !whole -> goto again :: else fi;
#endif
  do
  :: atomic { saw <= me && (saw != epoch || had != bucket[me]) -> saw = epoch; had = bucket[me] }
  :: saw > me -> break                                        /* lost: stop for good */
  :: atomic {                                                 /* acknowledge */
#if defined(V_NOREAD)
       run_of(bucket[me], n)
#elif defined(V_PERSEG)
       saw == me && had >= BIT(acked[me]) ->
         run_of(bucket[me], n); do :: n > 0 && !(had & BIT(n-1)) -> n-- :: else -> break od
#else
       saw == me -> run_of(had, n)
#endif
       ; if :: n > acked[me] -> acked[me] = n; check() :: else fi; n = 0
     }
#ifdef RETIRE
  :: atomic { !xdoomed &&
#ifdef V_DELEARLY
       bucket[me] == UPTO(NS) && saw == me
#else
       acked[me] >= 3
#endif
       -> xdoomed = true; xby = me }
#endif
#ifdef VIEW
  :: atomic { viewE < me && me < NE &&
#ifdef V_VIEWAHEAD
       (bucket[me] & 3) == 3
#else
       acked[me] >= 2
#endif
       -> viewE = me; viewS = 1 }
#endif
#ifdef SWEEP
  :: atomic {
#ifdef V_SWEEPEARLY
       me > 1
#else
       me > 1 && acked[me] > 0
#endif
       ;
       select(i : 1 .. me-1);
       /* n: how much of epoch i our chain accepts */
       ce = baseE[me]; cs = baseS[me];
       do
       :: ce < i -> n = 0; break
       :: ce == i -> n = cs + 1; break
       :: else -> cs = baseS[ce]; ce = baseE[ce]
       od;
       doomed[i] = doomed[i] | (bucket[i] & (UPTO(NS) - UPTO(n)));
       i = 0; n = 0; ce = 0; cs = 0
     }
#ifdef V_SWEEPOWN
  :: atomic { acked[me] > 0 -> doomed[me] = doomed[me] | (bucket[me] & (UPTO(NS) - UPTO(acked[me]))) }
#endif
#endif
  od
}

/* everything that is under way */
proctype net() {
  byte e, s;
  do
  :: atomic { select(e : 1 .. NE); select(s : 0 .. NS-1);
       if :: sending[e] && !(bucket[e] & BIT(s)) -> bucket[e] = bucket[e] | BIT(s) :: else fi; e = 0; s = 0 }
#ifdef SWEEP
  :: atomic { select(e : 1 .. NE); select(s : 0 .. NS-1);
       if
       :: (doomed[e] & bucket[e] & BIT(s)) ->
          bucket[e] = bucket[e] & (UPTO(NS) - BIT(s));
#ifdef REACHED
          if :: e == 2 && s == 0 -> sweptTakeover = true :: else fi;
#endif
          check()
       :: else fi; e = 0; s = 0 }
#endif
#ifdef RETIRE
  :: atomic { xdoomed && !xgone -> xgone = true; check() }
#endif
  od
}

#ifdef READER
/* somebody rebuilds from a list, any time after a takeover record is acknowledged */
active proctype reader() {
  byte e, n;
  atomic {
    select(e : 1 .. NE);
    (acked[e] > 0 && baseE[e] > 0);
    run_of(bucket[baseE[e]], n);
#ifdef V_CONTIG
    assert(n == baseS[e] + 1)
#else
    assert(n >= baseS[e] + 1)
#endif
  }
}
#endif

init { atomic { byte o = 1; do :: o > NE -> break :: else -> run owner(o); o++ od; run net() } }
