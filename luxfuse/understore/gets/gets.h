/* What the parts of the direct requests know of each other; each .c file has its own theory of operation.
 *
 *   sign.c     the address and headers of a request, signed where they are to be
 *   answer.c   the head of an answer: is it the object that was asked for?
 *   receive.c  what comes of an answer
 *   bodies.c   memory for bodies of parts
 *   keep.c     checksums of a body, and its cache file
 *   sets.c     connections
 *   pool.c     batches of requests on them
 *   module.c   Python's side: `luxfuse.understore.gets._gets`, with module_bodies.c, module_given.c and module_requests.c
 *
 * Nothing here knows Python but these, and nothing here decides what a failure means: all that is not the whole object,
 * in the version that was asked for, is handed back; likewise what is no plain description, and no listing. A request of
 * any other kind (GET_ANY) is made as it is said, and its answer handed back as it comes, whatever it is.
 *
 * Nor does anything here know stores: a target says where objects are, and which headers are about versions and metadata.
 * With each batch comes what opens the door: keys to sign with, as AWS does, or headers and a query that are sent as they are.
 */
#ifndef LUXFUSE_GETS_H
#define LUXFUSE_GETS_H

#include <curl/curl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#define PAGE_BYTES (1u << 20)
#define MOST_BYTES ((size_t)2 * PAGE_BYTES) /* of an object that is fetched whole */
#define MOST_PAGES 8u
#define MOST_PART_BYTES ((size_t)MOST_PAGES * PAGE_BYTES)
#define MOST_PARALLEL 8u			     /* requests of one batch at once */
#define HEAD_BYTES 8192u	/* of user metadata; S3 allows 2 KiB. What has more is handed back. */
#define REQUEST_BYTES 24576u	/* of a URL and the headers of a request: keys have up to 1 KiB, which may become 3 */
#define ETAG_BYTES 256u
#define LIST_BYTES (16u << 20) /* of a listing: a thousand keys, of which each byte may become three */
#define TOLD_BYTES (64u << 10) /* of the head of an answer that is handed back */

/* ------------------------------------------------------------------ sign.c */

#ifndef GETS_PAUSE
#define GETS_PAUSE(abandoned) ((void)0) /* where a test gives a batch up, just before a cache file would be written */
#endif

struct get;

struct target { /* where the objects of an under-store are, and how they are reached; constant */
	const char *url;    /* up to the key, without "/" at its end */
	const char *path;   /* the same without scheme and host */
	const char *host;   /* as in the header */
	const char *region; /* that requests are signed for */
	const char *condition; /* the header that names the version that is wanted */
	const char *version;   /* the header that tells the version of what comes */
	const char *metadata;  /* so begin the headers with user metadata */
	const char *agent;
	const char *bundle; /* of certificates that are believed */
	long connect_ms, timeout_ms, silence_s;
	unsigned most; /* requests at once, and idle connections */
};

#define LINES 8u
struct credentials {
	const char *access, *secret, *token; /* access NULL: requests are not signed; token NULL: there is none */
	const char *query;		     /* of every address; NULL: none. It is not signed */
	const char *lines[LINES + 1];	     /* further headers of every request, "name: value", up to a NULL; not signed */
};

struct signer { /* signs the requests of some seconds */
	const struct target *target;
	const struct credentials *credentials;
	char stamp[20], day[12];
	unsigned char key[32];
};

#define HEADERS 48
struct request {
	char *url;
	struct curl_slist headers[HEADERS]; /* linked; they refer to `text` */
	char text[REQUEST_BYTES];
};

bool signer_begin(struct signer *s, const struct target *t, const struct credentials *c, time_t now);
/* false: it is too long */
bool signer_sign(const struct signer *s, struct request *r, const struct get *g);
bool signer_sign_any(const struct signer *s, struct request *r, const struct get *g); /* of the kind GET_ANY; as above */

/* ------------------------------------------------------------------ answer.c */

struct answer {
	const struct target *target;
	unsigned status;
	bool odd; /* something that is not understood, or not expected */
	bool has_length, has_range;
	uint64_t length, first, last, total; /* of Content-Length; of Content-Range */
	int64_t modified_s; /* -1: not told */
	char etag[ETAG_BYTES];
	size_t metadata_bytes; /* name, NUL, value, NUL, ... */
	char metadata[HEAD_BYTES];
};

void answer_begin(struct answer *a);
void answer_line(struct answer *a, const char *line, size_t length);
bool answer_fits(const struct answer *a, const char *version, size_t size); /* it is the whole object, in that version */
bool answer_has_part(const struct answer *a, const char *version, uint64_t start, size_t size); /* it is that part of it */
bool answer_describes(const struct answer *a); /* it describes an object */

/* ------------------------------------------------------------------ bodies.c */

struct body { /* memory for the body of a part */
	struct body *next;
	char *bytes;
	size_t room;
};

struct body *body_take(size_t size); /* NULL: no memory */
struct body *body_give_back(struct body *b); /* returns those that are too many now, for `bodies_drop` */
void bodies_drop(struct body *b); /* it and those after it; that may take a while */
void bodies_release(void); /* those that nobody uses */

/* ------------------------------------------------------------------ keep.c */

struct kept {
	uint64_t sums[MOST_PAGES];
	unsigned pages;
	int error, fd; /* of the cache file: an errno; open if it was to stay so, else -1 */
	bool opened;   /* it had been opened, whatever came after that */
	int64_t stamp_ns;
	uint64_t number;
};

void keep_checksums(struct kept *k, const char *body, size_t size);
void keep_file(struct kept *k, const char *path, const char *body, size_t size, bool stay_open);

/* ------------------------------------------------------------------ pool.c: requests */

enum outcome {
	GET_ABANDONED, /* not made, or given up, as nobody waits for it */
	GET_DONE,      /* the body is here, and kept; or the description */
	GET_ANSWERED,  /* with something else: `status`, or an answer that does not fit (200, 206) */
	GET_FAILED,    /* without an answer: `code` of libcurl */
};

enum kind {
	GET_WHOLE, /* an object: key, version and size are known */
	GET_PART,  /* a part of one: besides, where it begins */
	GET_HEAD,  /* its description: only the key is */
	GET_LIST,  /* a listing; the key is "" */
	GET_ANY,   /* any request: its `said` is what is asked */
};

struct said { /* of a request of any kind */
	const char *method;
	const char *lines[HEADERS]; /* "name: value", the names in lower case; up to a NULL */
	const char *hash;	    /* of the body, as it is signed */
	const char *data;	    /* the body */
	size_t data_bytes;
	bool brief; /* it has the time-outs of a GET: little is sent, and the server need only take it */
};

struct get { /* one request */
	enum kind kind;
	const char *key, *version, *path; /* path of its cache file; NULL: none */
	const char *query;		  /* of a listing, or of any: encoded, in the order of names */
	const struct said *said;
	size_t size;			  /* of a description, of a listing: told at the end */
	uint64_t start, total;		  /* of a part; of its object, told at the end */
	bool stay_open;
	char *body; /* of `size` bytes, to be filled; of a listing and of any: to be freed */
	bool ended;
	enum outcome outcome;
	unsigned status, code;
	double seconds;
	struct kept kept;
	int64_t modified_s;
	char *metadata; /* NULL: no memory, or none; to be freed. Of any request: the head of the answer, as it came */
	size_t metadata_bytes;
	char etag[ETAG_BYTES]; /* of a description */
};

/* ------------------------------------------------------------------ receive.c */

struct slot { /* one request at a time */
	CURL *easy;
	struct get *get;
	bool judged, fits;
	size_t received;
	struct answer answer;
	struct request request;
};

size_t receive_line(char *line, size_t one, size_t length, void *slot); /* libcurl calls these */
size_t receive_body(char *data, size_t one, size_t length, void *slot);

/* ------------------------------------------------------------------ sets.c */

#define SOCKETS (4u * MOST_PARALLEL) /* of a set at once: while it connects, one may try several addresses */

struct set {
	struct set *next;
	CURLM *multi;
	unsigned widest; /* as many requests were under way at once: there are no more connections */
	struct slot *slots[MOST_PARALLEL];
	unsigned sockets_open;
	struct pollfd sockets[SOCKETS];
	ino_t numbers[SOCKETS]; /* of their inodes: tell ours from what has its descriptor now */
};

struct pool {
	const struct target *target;
	pthread_mutex_t lock; /* of the list */
	struct set *idle;     /* the last one that was used first */
	atomic_uint under_way; /* but those of the kind GET_ANY */
};

struct slot *slot_open(struct set *set, const struct target *t); /* NULL: no memory */
void set_look(struct set *set); /* end connections on which something has come; when no request is under way */
void set_close(struct set *set);
struct set *set_take(struct pool *p); /* NULL: no memory */
void set_give_back(struct pool *p, struct set *set);
void sets_allow(unsigned descriptors); /* that the idle sets of a pool may keep open, and requests of it have at once */
unsigned sets_allowed(void);

/* ------------------------------------------------------------------ pool.c: batches */

struct pool *pool_open(const struct target *t);
void pool_close(struct pool *p); /* when no batch is under way */

/* Make requests until each has an outcome. `abandoned` may become 1 meanwhile: then no cache file is opened any more, and
 * it returns soon. Blocks; any number of threads may call it. false: no memory. */
bool pool_get(struct pool *p, const struct credentials *c, struct get *gets, unsigned count, const uint8_t *abandoned);

struct listener { /* is told where some requests have ended a while ago, and others have not */
	void (*some_ended)(struct listener *l);
	uint8_t abandoned;
};
bool pool_make(struct pool *p, const struct credentials *c, struct get *gets, unsigned count, struct listener *l); /* as above */

#endif
