/*
absent.pml: why no acknowledgement rests on a key being absent. JOURNAL 3, 7; scenario S7.

A writer is about to write segment n under the only key that it has for it, and stalls. Another process takes the cell over;
since n is not there, it occupies that key with a segment of its own, as a fence. Later its segment is cleaned out, retired,
and deleted. Then the writer wakes up, and its create-if-absent succeeds.

Assumed: create-if-absent is atomic and the store keeps its word; the answer arrives.
Promised: what the writer acknowledges, the new owner accepted.

@holds the epoch is read again:
@fails ABSENT:   -DV_ABSENT
@fails reached:  -DREACHED

ABSENT acknowledges because the create-if-absent succeeded. "reached" shows that it does succeed in the end.
*/
mtype = { nothing, writers, others };
mtype key = nothing;   /* what is under the key */
byte epoch = 1;        /* the epoch object; the writer's is 1 */
bool acked;            /* the writer's segment */
bool over, accepted;   /* the takeover has listed; it saw the writer's segment */
#define PROMISED assert(!(acked && over) || accepted)

active proctype writer() {
  bool created;
  atomic { if :: key == nothing -> key = writers; created = true :: else fi }
#ifdef REACHED
  assert(!(created && over));
#endif
#ifdef V_ABSENT
  atomic { created -> acked = true; PROMISED }
#else
  /* the read begins after the segment is known to be there */
  atomic { created && epoch == 1 -> acked = true; PROMISED }
#endif
}

active proctype successor() {
  epoch = 2;
  atomic { over = true; if :: key == writers -> accepted = true :: key == nothing -> key = others fi; PROMISED }
  atomic { key == others -> key = nothing }   /* retired and deleted */
}
