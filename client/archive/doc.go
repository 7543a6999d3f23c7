// Package archive says what an archive is: the entries of its tree, its verdict list and its root, and
// how they are encoded. Package tree arranges entries into blocks.
//
// All integers are big-endian. uvarint is a base-128 varint in its shortest form, the low seven bits
// first; zigzag a signed integer as uvarint of (n << 1) ^ (n >> 63). vlp(x) is the length of x as
// uvarint, then x. Decoders refuse every other form of the same thing, so what decodes has one encoding.
//
// # Keys and order
//
// The key of a path is its bytes with 0x00 for '/'. Entries are in the order of their keys, as unsigned
// bytes, which is the order of paths component by component: everything below a directory directly
// follows it. An item that continues the extents of a file has the file's key, then 0x00 0x00, and so
// directly follows the file's entry; as no component is empty, no path has such a key. Nothing lies below
// what is not a directory. A directory on the way to an entry need not have an entry itself.
//
// # Page
//
// A page holds items in the order of their keys, and the table of the block names they refer to. Nodes of
// a tree (package tree) and sections of a catalog (package catalog) are pages.
//
//	names   u32 n <= 16384, then n x 32 bytes, strictly increasing; each is referred to at least once
//	head    of a size that depends on what the page is for
//	count   u32
//	items   count times:
//	        shared  uvarint: bytes that the key shares with the key before; as many as possible, 0 for the first item
//	        rest    vlp: the rest of the key; a key has at most 65,538 bytes
//	        fields
//
// A reference to a name is its index in names, u16.
//
// # Entry
//
// The fields of an entry's item:
//
//	type      u8: 1 file, 2 directory, 3 symlink, 4 FIFO, 5 character device, 6 block device, 7 socket
//	flags     u8: bit 0 changed while it was read, bit 1 unreadable
//	mode      uvarint <= 07777
//	uid, gid  uvarint < 2^32 each
//	user      vlp <= 1,024, the name of uid where the machine knew one
//	group     vlp <= 1,024
//	mtime     zigzag seconds since 1970, uvarint nanoseconds < 10^9
//	link      vlp <= 65,536: of a hard link the path of an earlier entry, which is the same file; else empty
//	size      uvarint < 2^63; files only
//	target    vlp <= 65,536, without NUL; symlinks only
//	major     uvarint < 2^32; devices only
//	minor     uvarint < 2^32; devices only
//	xattrs    uvarint n, then n times: name vlp <= 1,024, not empty, without NUL, strictly increasing;
//	          value vlp; names and values have at most 524,288 bytes together
//	content   u8 0, or u8 1 and 16 bytes that are not all zero; see below
//	extents   uvarint n <= 512, then n extents
//
// content and extents are there only for a file that is neither a hard link nor unreadable. The fields of
// an item that continues extents are uvarint n from 1 to 512, then n extents. An extent:
//
//	kind      u8: 0 a hole, 1 a whole chunk, 2 a range of a pack
//	name      u16 reference; not for a hole
//	offset    uvarint: where the range begins in the pack's plaintext; packs only
//	length    uvarint, at least 1. Of a chunk, its plaintext's; at most 4 MiB for a chunk, and for offset
//	          + length of a pack; below 2^63 for a hole
//
// The lengths of all extents of a file add up to its size. A hole is that many zero bytes. A pack is the
// contents of several files one after another. content is set if and only if the file has extents in
// packs and none that is a chunk: the first 16 bytes of the name that the whole content, holes included,
// would have as one chunk, BLAKE3 keyed with K_name[chunk].
//
// The flag "changed" says that the file changed while it was read: its content is as read. "Unreadable"
// says that a file's content or a directory's list could not be read: size is what the system said.
//
// A writer ends an item, if there are more extents, after its 512th extent, and from the 32nd on after
// one that has a border: floor(h * 96 / 2^64) = 0, where h is the first 8 bytes of HMAC-SHA256(K_tree of
// metadata, 1 u8 || kind u8 || name 32 || offset u32 || length u64) of that extent; zeros where a kind
// has no such field. So items of about 128 extents stay the same when extents are added before them.
//
// # Verdict list
//
// What became of the paths that are not simply stored, in the order of paths, each path once. The list is
// cut into blocks of kind chunk, each of which decodes by itself:
//
//	version   u8 = 1
//	verdicts  one or more: what u8 (1 excluded, 2 vanished, 3 changed, 4 unreadable),
//	          path vlp <= 65,536, why vlp <= 4,096 (text for a person)
//
// A writer ends a chunk after a verdict with which it is at least 512 KiB long, or at least 32 KiB long
// with floor(h * 98304 / 2^64) < length of that verdict, where h is the first 8 bytes of
// HMAC-SHA256(K_tree of metadata, 3 u8 || key of the path).
//
// # Root
//
// The plaintext of a block of kind archive, the one that a commit record names:
//
//	names     u32 n, then n x 32 bytes, strictly increasing: the root of the tree and the chunks of the
//	          verdict list; exactly the block's links
//	version   u8 = 1
//	height    u8: levels of the tree, at most 16; 0 if there is no entry
//	tree      u16 reference to the tree's root node; only if height is not 0
//	entries   u64
//	bytes     u64: sum of the sizes of the files whose content is in the archive under their own entry
//	time      i64: the client's clock when the run began, ns since 1970
//	host, user, series, client      vlp <= 65,536 each: texts; client is the version of the program
//	roots     uvarint n <= 16,384, then n times vlp: the paths given
//	args      uvarint n <= 16,384, then n times vlp: the options that decided what was stored
//	counts    6 x u64: paths stored, unchanged, excluded, vanished, changed, unreadable
//	verdicts  uvarint n <= 16,383, then n x u16: references to the chunks of the verdict list, in order
//	prev      32: the commit record of the archive of the same series that this run started from, or zeros
//
// All texts together have at most 3 MiB.
package archive
