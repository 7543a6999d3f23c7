/*
claim.pml: how an epoch is claimed, call by call. JOURNAL 4; it takes apart the one step that owner.pml assumes.

The epoch object holds a number and the random ID of a claim. A claimant reads it, replaces it on condition that it is
unchanged, and may not be told what became of that: the answer is lost, or the request lands long after. "Unknown is not
failed": it reads again, and owns the epoch if the object holds a claim that it sent. It tries a few times.

Assumed: the store's conditional replace is atomic among all processes; nobody else writes the object.
Promised: no two processes ever believe that they own the same epoch, and an epoch that somebody believes to own was in the
object.

@holds two claimants:          -DPROCESSES=2 -DTRIES=3
@large three claimants:        -DPROCESSES=3 -DTRIES=2
@fails NOID:                   -DV_NOID
@fails DELETED:                -DV_DELETED
@fails reached:                -DREACHED

NOID has the number alone in the object, and recognises itself by it. DELETED removes the object once, which begins the
numbers again. "reached" shows that a claim which lands late can be recognised by who sent it.
*/
#ifndef PROCESSES
#define PROCESSES 2
#endif
#ifndef TRIES
#define TRIES 2
#endif

byte number, id;      /* the epoch object; number 0: it was never claimed */
byte owns[4];         /* what each process believes to own; 0: nothing yet */

#ifdef V_NOID
#define UNCHANGED(n, i)  (number == n)
#define OURS(n, p)       (number == n)
#else
#define UNCHANGED(n, i)  (number == n && id == i)
#define OURS(n, p)       (id == p)
#endif

inline own(p) {
  owns[p] = number;
  assert(owns[p] != 0);
  assert(!(owns[1] && owns[1] == owns[2]) && !(owns[1] && owns[1] == owns[3]) && !(owns[2] && owns[2] == owns[3]))
}

proctype claimant(byte p) {
  byte sawNumber, sawID, tries;
  do
  :: tries < TRIES ->
     atomic { sawNumber = number; sawID = id; tries++ }
     if
     :: atomic { UNCHANGED(sawNumber, sawID) -> number = sawNumber + 1; id = p; own(p) } break   /* done, and told so */
     :: atomic { UNCHANGED(sawNumber, sawID) -> number = sawNumber + 1; id = p }                 /* done, the answer lost */
     :: atomic { run late(sawNumber, sawID, p) }                                                 /* on its way */
     :: atomic { !UNCHANGED(sawNumber, sawID) }                                                  /* refused */
     fi;
     atomic {                                                                                    /* read again */
       if
       :: OURS(sawNumber + 1, p) ->
#ifdef REACHED
          assert(tries < TRIES || sawNumber == number);
#endif
          own(p); break
       :: else
       fi
     }
  :: else -> break
  od
}

proctype late(byte sawNumber, sawID, p) { atomic { UNCHANGED(sawNumber, sawID) -> number = sawNumber + 1; id = p } }

#ifdef V_DELETED
active proctype vandal() { atomic { number > 0 -> number = 0; id = 0 } }
#endif

init {
  atomic { run claimant(1); run claimant(2);
#if PROCESSES > 2
    run claimant(3)
#endif
  }
}
