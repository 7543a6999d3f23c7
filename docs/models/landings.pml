/*
landings.pml: one segment, two attempts to write it. JOURNAL 6; scenario S8.

The owner writes (epoch, seq) under a key with nonce A and, not having heard of it, again under nonce B. Each lands at any
time or never, whatever the owner was told. The owner acknowledges by the attempt of which it heard. The next owner lists
and accepts either landing that it sees. Much later the segment is cleaned out, recorded as retired and deleted, under
the nonces that are known by then; the other attempt may land after that. Then somebody rebuilds from a bare list.

Assumed: a new owner sees what was acknowledged (owner.pml); the record of a retired segment is kept for ever.
Promised: what the new owner accepts is what was acknowledged, and the next segment's "previous hash" fits it; what is
retired does not come back.

@holds all landings:
@fails REFILL:     -DV_REFILL
@fails NONCEHASH:  -DV_NONCEHASH
@fails NORETIRE:   -DV_NORETIRE
@fails reached:    -DREACHED

REFILL goes on filling the segment before the second attempt. NONCEHASH has the nonce within the hashed bytes, so that the
next segment names one landing only. NORETIRE rebuilds without looking at what is retired. "reached" shows that an attempt
can land after everything was deleted.
*/
#ifdef V_REFILL
#define CONTENT_B 2
#else
#define CONTENT_B 1
#endif
#ifdef V_NONCEHASH
#define HASH_B 2
#else
#define HASH_B 1
#endif

bool sentA, sentB;            /* the attempt is under way */
bool thereA, thereB;          /* it has landed */
byte ackContent, ackPrevious; /* what was acknowledged; the hash that the next segment names */
bool retired;

active proctype net() {
  do
  :: atomic { sentA && !thereA -> thereA = true; sentA = false }
  :: atomic { sentB && !thereB -> thereB = true; sentB = false }
  od
}

active proctype life() {
  sentA = true;
  if :: sentB = true :: skip fi;
  if
  :: atomic { thereA -> ackContent = 1; ackPrevious = 1 }
  :: atomic { thereB -> ackContent = CONTENT_B; ackPrevious = HASH_B }
  fi;
  atomic {   /* the next owner lists */
    if
    :: thereA -> assert(ackContent == 1); assert(ackPrevious == 1)
    :: thereB -> assert(ackContent == CONTENT_B); assert(ackPrevious == HASH_B)
    fi
  }
  atomic { retired = true; thereA = false; thereB = false }
#ifdef REACHED
  assert(!thereA && !thereB);
#endif
#ifdef V_NORETIRE
  assert(!(thereA || thereB))
#else
  assert(!((thereA || thereB) && !retired))
#endif
}
