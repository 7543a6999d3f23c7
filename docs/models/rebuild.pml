/*
rebuild.pml: a rebuild needs no checkpoint. JOURNAL 12; scenario S4. remove.pml has the same with two owners, and with
writes that land late.

Four segments, a record each: 0 stores block C, 1 stores P which links to C, 2 commits an archive with root P, 3 moves C from
segment 0 to 3. Segments without live bytes (1 and 2, after their blocks were moved likewise) are retired: their objects
go. At any moment somebody rebuilds from what the bucket has.

Assumed: objects and bundles appear whole; a bundle was read back before it counts.
Promised: the rebuild finds an unbroken chain, the archive, both blocks, and C at its last place.

@holds trailers are bundled first:
@fails DROP:         -DV_DROP
@fails BUNDLELATE:   -DV_BUNDLELATE
@fails CHECKPOINT:   -DV_DROP -DV_CHECKPOINT
@fails reached:      -DREACHED

DROP deletes the records with the object. BUNDLELATE writes the bundle afterwards. CHECKPOINT does as DROP, and rebuilds from
a checkpoint that is older than the dropped segment. "reached" shows that a rebuild happens with segments gone.
*/
#define BIT(s) (1 << (s))

byte objects = 15, bundled;    /* whose trailer is in its object; in a bundle */
bool C, P, archive, chain;     /* what the rebuild found */
byte place;
hidden byte r;

active proctype cleaner() {
  byte s = 1;
  do
  :: s < 3 ->
#if defined(V_DROP)
     objects = objects & (15 - BIT(s));
#elif defined(V_BUNDLELATE)
     objects = objects & (15 - BIT(s));
     bundled = bundled | BIT(s);
#else
     bundled = bundled | BIT(s);
     objects = objects & (15 - BIT(s));
#endif
     s++
  :: else -> break
  od
}

active proctype rebuild() {
  d_step {
    r = 0; chain = true;
#ifdef V_CHECKPOINT
    r = 2; C = true; P = true; place = 1;
#endif
#ifdef REACHED
    assert(objects == 15);
#endif
    do
    :: r < 4 ->
       if
       :: (objects | bundled) & BIT(r) ->
          if
          :: r == 0 -> C = true; place = 1
          :: r == 1 -> P = C
          :: r == 2 -> archive = P
          :: r == 3 -> place = 4
          fi
       :: else -> chain = false
       fi;
       r++
    :: else -> break
    od;
    assert(chain && archive && P && C && place == 4)
  }
}
