/* Election, session, grace and fence, for every interleaving: two candidates, one home, two guests, one device.
 * Where each part stands in the code: README.md. `run` checks it, and every planted fault (-D…) as a counterexample.
 *
 * Time is a counter that may advance whenever it likes; nobody compares two of its readings but through the rules of
 * daemon/lease/timing.h (drift is left out: the arithmetic of it is unit-tested). */

#define TTL 1
#define GRACE 1
#define NOW_MAX 4
#define TOKENS_MAX 2
#define TERMS_MAX 2

byte now = 0;

/* The store. A transaction is one atomic step, guarded by the coordinator key and the record's revision. */
byte keyTerm = 0;             /* of the coordinator key; 0: there is none */
byte term = 0;
byte revision = 0;            /* of the device's record */
byte leaseToken = 0;          /* 0: free */
byte leaseGuest = 0;
bool leaseFencing = false;
byte lastToken = 0;
bool homeGone = false;        /* the home counts as gone */

/* The home's disk, its relay (which needs no daemon), and the device's stream. */
byte armed = 0;
byte fenced = 0;
byte relayToken = 0;          /* that a relay runs for; 0: none */
byte relayGuest = 0;
byte deadline = 0;
byte liveToken = 0;           /* under which transfers can still complete at the device */
byte greatestLive = 0;

/* What the home knows. Lost with its daemon. */
byte seenToken = 0;
byte seenGuest = 0;
bool seenFencing = false;
byte answeredFrom = 0;        /* t0 of the newest answered renewal, plus one; 0: none */

chan renewal = [1] of { byte };           /* t0 */
chan answer = [1] of { byte, byte };      /* t0, the token that it renews */
chan confirmation = [1] of { byte };      /* token */

#ifdef EQUAL_TOKEN_IS_ARMED
#define MAY_ARM (seenToken >= fenced)
#define STILL_MAY_ARM true
#else
#define MAY_ARM (seenToken > fenced && seenToken > armed)
#define STILL_MAY_ARM (token > fenced)
#endif

#define forwards (relayToken != 0 && now < deadline)

/* The invariants of docs/architecture.md, at the device. */
#define SAFE                                                                                 \
  assert(liveToken == 0 || liveToken == leaseToken);   /* fence before grant */              \
  assert(!(forwards) || relayGuest == leaseGuest);     /* the holder, nobody else */         \
  assert(!(forwards && homeGone))                      /* gone means stopped */

/* What a coordinator holds in memory; deposed, it forgets. What is not needed any more is zero everywhere, so that
 * states that differ in nothing are one state. */
#define FORGET myTerm = 0; countedFrom = 0; mRevision = 0; mToken = 0; mGuest = 0; mFencing = false; mLast = 0
#define RELOAD                                                                                                  \
  if                                                                                                            \
  :: keyTerm == myTerm -> mRevision = revision; mToken = leaseToken; mGuest = leaseGuest; mFencing = leaseFencing; \
     mLast = lastToken                                                                                          \
  :: else -> FORGET                                                                                             \
  fi

proctype Candidate(byte guest) {
  byte myTerm = 0;
  byte countedFrom = 0;        /* last answered renewal, or the election */
  byte mRevision = 0, mToken = 0, mGuest = 0, mLast = 0;
  bool mFencing = false;
  byte t0 = 0, token = 0;
  bool ours = false;

end:
  do
  /* Coordinator::claim: only where there is no key; the term grows in the same transaction. */
  :: atomic { keyTerm == 0 && term < TERMS_MAX && myTerm == 0 ->
       term++; keyTerm = term; myTerm = term;
       mRevision = revision; mToken = leaseToken; mGuest = leaseGuest; mFencing = leaseFencing; mLast = lastToken;
#ifdef NO_GRACE_AFTER_ELECTION
       countedFrom = 0
#else
       countedFrom = now
#endif
     }

  /* A deposed one notices in its own time: until then it believes in itself. */
  :: atomic { myTerm != 0 && keyTerm != myTerm -> FORGET }

  /* Step::grant, decided in memory, written under guards. */
  :: atomic { myTerm != 0 && mToken == 0 && mLast < TOKENS_MAX ->
#ifdef TOKEN_USED_TWICE
       token = (mLast == 0 -> 1 : mLast);
#else
       token = mLast + 1;
#endif
       if
#ifdef WRITE_WITHOUT_GUARD
       :: true ->
#else
       :: keyTerm == myTerm && revision == mRevision ->
#endif
          revision++; leaseToken = token; leaseGuest = guest; leaseFencing = false; lastToken = token; SAFE;
          mRevision = revision; mToken = token; mGuest = guest; mFencing = false; mLast = token
       :: else -> RELOAD
       fi;
       token = 0
     }

  /* A release, a revocation: the home is ordered to fence. */
  :: atomic { myTerm != 0 && mToken != 0 && !mFencing ->
       if
       :: keyTerm == myTerm && revision == mRevision ->
#ifdef GRANT_WITHOUT_FENCE
          revision++; leaseToken = 0; leaseGuest = 0; leaseFencing = false; SAFE; mRevision = revision; mToken = 0
#else
          revision++; leaseFencing = true; mRevision = revision; mFencing = true
#endif
       :: else -> RELOAD
       fi;
       token = 0
     }

  /* Step::confirm_fenced. */
  :: atomic { myTerm != 0 && confirmation ? [token] -> confirmation ? token;
       if
       :: keyTerm == myTerm && revision == mRevision && mToken == token ->
          revision++; leaseToken = 0; leaseGuest = 0; leaseFencing = false; SAFE;
          mRevision = revision; mToken = 0; mGuest = 0; mFencing = false
       :: else -> skip
       fi;
       token = 0
     }

  /* Coordinator::renew: a read that begins after the renewal arrived decides. */
  :: myTerm != 0 && renewal ? [t0] ->
#ifdef READ_BEFORE_RENEWAL
     ours = (keyTerm == myTerm); renewal ? t0;
#else
     renewal ? t0; ours = (keyTerm == myTerm);
#endif
#ifdef NO_READ
     ours = true;
#endif
     if
     :: atomic { ours && nfull(answer) -> countedFrom = now; answer ! t0, (mFencing -> 0 : mToken); t0 = 0; ours = false }
     :: atomic { !ours || full(answer) -> t0 = 0; ours = false }
     fi

  /* CoordinatorSessions::gone. */
  :: atomic { myTerm != 0 && !homeGone && now >= countedFrom + TTL + GRACE ->
       if
       :: keyTerm == myTerm && now >= countedFrom + TTL + GRACE -> homeGone = true; SAFE;
#ifdef TIME_FREES
          revision++; leaseToken = 0; leaseGuest = 0; leaseFencing = false; SAFE; mRevision = revision; mToken = 0
#endif
       :: else -> skip
       fi
     }

  /* HostView: pushed to the home, or lost. */
  :: atomic { myTerm != 0 && (seenToken != mToken || seenFencing != mFencing) ->
       seenToken = mToken; seenGuest = mGuest; seenFencing = mFencing }
  od
}

proctype Home() {
  byte t0 = 0, token = 0;
end:
  do
  /* Session::renew: t0 before the message leaves. It, or its answer, may be lost. */
  :: atomic { nfull(renewal) && !homeGone -> renewal ! now }
  :: atomic { renewal ? [t0] -> renewal ? t0; t0 = 0 }
  :: answer ? [t0, token] -> atomic {
       answer ? t0, token;
#ifdef DEADLINE_FROM_ANSWER
       t0 = now;
#endif
       if
       :: answeredFrom < t0 + 1 -> answeredFrom = t0 + 1
       :: else -> skip
       fi;
       if
       :: relayToken != 0 && token == relayToken && now < deadline && t0 + TTL > deadline -> deadline = t0 + TTL
       :: else -> skip
       fi; SAFE; t0 = 0; token = 0 }

  /* EndpointHome::armed_on_disk: on disk first, then a relay with the session's deadline. */
  :: atomic { seenToken != 0 && !seenFencing && relayToken == 0 && liveToken == 0 && answeredFrom != 0 && !homeGone &&
       MAY_ARM -> token = seenToken };
     armed = token;
     atomic {
       if
       :: seenToken == token && !seenFencing && answeredFrom - 1 + TTL > now && STILL_MAY_ARM ->
          relayToken = token; relayGuest = seenGuest; deadline = answeredFrom - 1 + TTL; liveToken = token;
          assert(liveToken >= greatestLive); greatestLive = liveToken; SAFE
       :: else -> skip
       fi;
       token = 0
     }

  /* EndpointHome::fence: the relay ends, the device's own end of stream is seen, the floor is on disk, then the word. */
  :: seenFencing && relayToken == seenToken && relayToken != 0 -> relayToken = 0
#ifdef CONFIRM_BEFORE_THE_END
  :: atomic { seenFencing && seenToken != 0 && nfull(confirmation) -> fenced = seenToken; confirmation ! seenToken }
#else
  :: atomic { seenFencing && seenToken != 0 && relayToken != seenToken && liveToken != seenToken && nfull(confirmation) ->
       token = seenToken };
     fenced = (fenced > token -> fenced : token);
     atomic { nfull(confirmation) -> confirmation ! token; token = 0 }
#endif

  /* The daemon dies: what it knew is gone, its relay is not. */
  :: atomic { seenToken != 0 || answeredFrom != 0 -> seenToken = 0; seenGuest = 0; seenFencing = false; answeredFrom = 0 }
  od
}

proctype World() {
end:
  do
  :: atomic { now < NOW_MAX -> now++; 
       if
       :: relayToken != 0 && now >= deadline -> relayToken = 0
       :: else -> skip
       fi; SAFE }
  :: keyTerm != 0 && term < TERMS_MAX -> keyTerm = 0       /* the owner's lease runs out, whoever lives */
  :: relayToken == 0 && liveToken != 0 -> liveToken = 0    /* the endpoint has cancelled what was queued */
  :: relayToken != 0 -> relayToken = 0                     /* a relay is killed, or the guest lets go */
  :: confirmation ? _                                      /* lost on its way */
  :: answer ? _, _
  od
}

init {
  atomic { run Candidate(1); run Candidate(2); run Home(); run World() }
}
