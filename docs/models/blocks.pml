/*
blocks.pml: storing, deleting, condemning and moving blocks, with crashes. JOURNAL 1, 8, 10, 11, 16 and 18 to 20; scenarios
S6, S10. When an object may be deleted, and what becomes of its trailer, is in remove.pml.

Block C is a leaf, block P links to it. Archive A0, whose root is C, is being purged, while a client makes archive A1, whose
root is P. A job condemns what has no references; another moves C to a new place, in the segment of the record that says
so, and retires the old one. All of them only append records. A record counts at once for what is appended after it (the
sequenced view, SEQ) and becomes durable and acknowledged later (the durable view, DUR). A crash keeps some beginning of the queue and loses the rest, and with it all
sessions. Places of C are numbered and never used twice.

Assumed: one vault, one session at a time, one owner; ages and grace periods are any (a block is old enough whenever no
session was told of it, promise.pml).
Promised: an archive that is durable is whole; a referenced block is where the view says, and its object is not
deleted; a place is freed once and nothing lives on at a freed place; no count goes below zero.

@holds the rules:
@holds BYNAME:              -DV_BYNAME
@holds SESSLIVES:           -DV_SESSLIVES
@large more sessions:       -DSESSIONS=5
@fails ACKVIEW:             -DV_ACKVIEW
@fails TOCTOU:              -DV_TOCTOU
@fails STALESCAN:           -DV_STALESCAN
@fails BYNAME, STALESCAN:   -DV_BYNAME -DV_STALESCAN
@fails BLINDMOVE:           -DV_BLINDMOVE
@fails BLINDRET:            -DV_BLINDRET
@fails REORDER:             -DV_REORDER
@fails VIEWAHEAD:           -DV_VIEWAHEAD
@fails DELUNACKED:          -DV_DELUNACKED
@fails reached:             -DREACHED

ACKVIEW validates against the durable view alone. TOCTOU validates on arrival and appends later. STALESCAN appends what a scan
found without asking again. BLINDMOVE and BLINDRET move and retire without looking whether that is still the place.
REORDER replays "stored" records before the others of their segment. VIEWAHEAD keeps in the view what a crash lost.
DELUNACKED deletes an object when the record that retires it is appended. BYNAME frees a block by its name, not by name and
place: by itself that does no harm here, and with STALESCAN it takes away a block that was stored again; it is the second
of two locks. SESSLIVES lets sessions survive a crash: no harm here, but see promise.pml. "reached" shows that archive
A1 gets durable with C stored again, after a crash, with an old place freed and an object deleted.
*/
#define PLACES 5
#define QUEUE  3
#ifndef SESSIONS
#define SESSIONS 3
#endif
#define DUR 0
#define SEQ 1
#define AT(l) (1 << (l))

mtype = { STORE_C, STORE_P, COMMIT, PURGE, FREE_C, FREE_P, MOVE_C, RETIRE };
mtype what[QUEUE]; byte one[QUEUE], two[QUEUE], length;       /* appended, not durable */
mtype W; byte A, B;                                           /* the record in hand */

byte C[2] = 1, P[2];           /* the place of each block in each view; 0: it is not there */
byte countC[2] = 1, countP[2]; /* references */
bool archive[2];               /* A1 is committed */
byte freed[2], retired[2];     /* places, as bits */
byte deleted;                  /* objects that are gone, by place */
byte nextC = 2, nextP = 1;
bool session, told;            /* open; was told, or knows, that C is there */
byte sessions, crashes;
bool purged;

inline apply(v) {
  if
  :: W == STORE_C -> if :: C[v] == 0 -> C[v] = A :: else fi
  :: W == STORE_P -> if :: P[v] == 0 -> assert(C[v] != 0); P[v] = A; countC[v]++ :: else fi
  :: W == COMMIT  -> assert(P[v] != 0); if :: !archive[v] -> archive[v] = true; countP[v]++ :: else fi
  :: W == PURGE   -> assert(countC[v] > 0); countC[v]--
  :: W == FREE_C  -> assert(!(freed[v] & AT(A))); freed[v] = freed[v] | AT(A);
#ifdef V_BYNAME
     C[v] = 0;
#else
     if :: C[v] == A -> C[v] = 0 :: else fi;
#endif
     assert(countC[v] == 0 || C[v] != 0)
  :: W == FREE_P  -> assert(countP[v] == 0); P[v] = 0; countC[v]--
  :: W == MOVE_C  ->
#ifdef V_BLINDMOVE
     assert(!(freed[v] & AT(A))); C[v] = B
#else
     if :: C[v] == A -> C[v] = B :: else fi
#endif
  :: W == RETIRE  -> assert(C[v] != A); retired[v] = retired[v] | AT(A)
  fi
}

inline promised() {
#ifdef REACHED
  assert(!(archive[DUR] && C[DUR] > 2 && deleted && crashes > 0 && freed[DUR]));
#endif
  assert(!archive[DUR] || (P[DUR] != 0 && C[DUR] != 0));
  assert(countC[DUR] == 0 || (C[DUR] != 0 && !(deleted & AT(C[DUR]))));
  assert(C[DUR] == 0 || !(freed[DUR] & AT(C[DUR])))
}

#define ROOM (length < QUEUE)
inline append(w, x, y) { what[length] = w; one[length] = x; two[length] = y; length++; W = w; A = x; B = y; apply(SEQ); W = 0; A = 0; B = 0 }

inline make_durable() {
  W = what[0]; A = one[0]; B = two[0]; apply(DUR); promised();
  what[0] = what[1]; one[0] = one[1]; two[0] = two[1];
  what[1] = what[2]; one[1] = one[2]; two[1] = two[2];
  what[2] = 0; one[2] = 0; two[2] = 0;
  length--; W = 0; A = 0; B = 0
}

proctype bucket() {
  do
  :: d_step { length > 0 -> make_durable() }
#ifdef V_REORDER
  :: d_step { length > 1 ->
       if :: what[1] == STORE_C && what[0] != STORE_C ->
             W = what[0]; A = one[0]; B = two[0]; what[0] = what[1]; one[0] = one[1]; two[0] = two[1]; what[1] = W; one[1] = A; two[1] = B
          :: else fi;
       make_durable(); make_durable() }
#endif
  od
}

/* what survives is what was made durable before */
proctype crash() {
  do
  :: d_step { crashes < 2 && length > 0 -> crashes++;
       do :: length > 0 -> length--; what[length] = 0; one[length] = 0; two[length] = 0 :: else -> break od;
#ifndef V_VIEWAHEAD
       C[SEQ] = C[DUR]; P[SEQ] = P[DUR]; countC[SEQ] = countC[DUR]; countP[SEQ] = countP[DUR];
       archive[SEQ] = archive[DUR]; freed[SEQ] = freed[DUR]; retired[SEQ] = retired[DUR];
#endif
#ifndef V_SESSLIVES
       session = false; told = false;
#endif
       skip }
  od
}

#ifdef V_ACKVIEW
#define VALID DUR
#else
#define VALID SEQ
#endif

proctype client() {
  bool checked;
  do
  :: d_step { !session && sessions < SESSIONS && !archive[DUR] -> session = true; sessions++; told = false; checked = false }
  :: d_step { session && !told && C[VALID] != 0 -> told = true }
  :: d_step { session && C[VALID] == 0 && nextC < PLACES && ROOM -> append(STORE_C, nextC, 0); nextC++; told = true }
#ifdef V_TOCTOU
  :: d_step { session && !checked && C[SEQ] != 0 -> checked = true }
  :: d_step { session && checked && P[SEQ] == 0 && nextP < 4 && ROOM -> append(STORE_P, nextP, 0); nextP++ }
#else
  :: d_step { session && C[VALID] != 0 && P[VALID] == 0 && nextP < 4 && ROOM -> append(STORE_P, nextP, 0); nextP++ }
#endif
  :: d_step { session && P[VALID] != 0 && !archive[VALID] && ROOM -> append(COMMIT, 0, 0) }
  :: d_step { session -> session = false; told = false }       /* done, dead, or expired */
  od
}

proctype reclaim() {
  byte pick;
  do
  :: d_step { !purged && ROOM -> purged = true; append(PURGE, 0, 0) }
  :: d_step { pick == 0 && countC[SEQ] == 0 && C[SEQ] != 0 && !told -> pick = C[SEQ] }         /* a scan finds it */
  :: d_step { pick != 0 && ROOM ->
#ifdef V_STALESCAN
       append(FREE_C, pick, 0);
#else
       if :: C[SEQ] == pick && countC[SEQ] == 0 && !told -> append(FREE_C, pick, 0) :: else fi;
#endif
       pick = 0 }
  :: d_step { P[SEQ] != 0 && countP[SEQ] == 0 && !session && ROOM -> append(FREE_P, P[SEQ], 0) }
  od
}

proctype cleaner() {
  byte from, step;
  do
  :: d_step { step == 0 && C[DUR] != 0 && nextC < PLACES -> from = C[DUR]; step = 1 }    /* read its bytes */
  :: d_step { step == 1 && ROOM && nextC < PLACES ->
#ifdef V_BLINDMOVE
       append(MOVE_C, from, nextC); nextC++;
#else
       if :: C[SEQ] == from -> append(MOVE_C, from, nextC); nextC++ :: else -> skip fi;
#endif
       step = 2 }
  :: d_step { step == 2 && ROOM ->
#ifdef V_BLINDRET
       append(RETIRE, from, 0); step = 3
#else
       if :: C[SEQ] != from -> append(RETIRE, from, 0); step = 3 :: else step = 0; from = 0 fi
#endif
     }
#ifdef V_DELUNACKED
  :: d_step { step == 3 && (retired[SEQ] & AT(from)) -> deleted = deleted | AT(from); promised(); step = 0; from = 0 }
#else
  :: d_step { step == 3 && (retired[DUR] & AT(from)) -> deleted = deleted | AT(from); promised(); step = 0; from = 0 }
#endif
  :: d_step { step == 3 && !(retired[SEQ] & AT(from)) -> step = 0; from = 0 }         /* lost in a crash */
  od
}

init { atomic { run bucket(); run crash(); run client(); run reclaim(); run cleaner() } }
