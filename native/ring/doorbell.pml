/* The doorbells of the ring (native/libseal/seal_ring.h), for spin: a client that submits commands and
 * sleeps until each is done, and the keeper, which sleeps while there is none.
 *
 *	spin -a doorbell.pml && cc -o pan pan.c && ./pan
 *
 * finds no invalid end state: nobody sleeps for ever while there is something to do. Each side sets its
 * flag before its last look at what the other publishes, and the other looks at the flag after it has
 * published (Promela is sequentially consistent, as the fences make these four accesses). Define
 * FORGETFUL to take the last look away: the checker then finds the lost wake-up.
 */
#define COMMANDS 4

byte head, done;              /* what each publishes */
bit kick_wanted = 1, bell_wanted; /* "I sleep" */
byte kicks, bells;            /* eventfds, edge triggered */

active proctype client()
{
	byte sent;
	bit was;

	do
	:: sent < COMMANDS ->
		sent++;
		head = sent;
		/* exchange(kick_wanted, 0) */
		atomic { was = kick_wanted; kick_wanted = 0 };
		if
		:: was -> kicks++
		:: else
		fi;
		/* Wait for it, or send one more first. */
		if
		:: true ->
			do
			:: done >= sent -> break
			:: else ->
				bell_wanted = 1;
#ifndef FORGETFUL
				if
				:: done >= sent -> break
				:: else
				fi;
#endif
				/* epoll_wait on the bell */
				atomic { bells > 0 -> bells = 0 }
			od
		:: sent < COMMANDS -> skip
		fi
	:: else -> break
	od
}

active proctype keeper()
{
	byte tail;

end:	do
	:: /* epoll_wait: edges that came together are one */
		atomic { kicks > 0 -> kicks = 0 };
again:		kick_wanted = 0;
		do
		:: tail < head ->
			tail++;
			done = tail;
			/* ring_bell */
			if
			:: bell_wanted -> bell_wanted = 0; bells++
			:: else
			fi
		:: else -> break
		od;
		kick_wanted = 1;
#ifndef FORGETFUL
		if
		:: tail < head -> goto again
		:: else
		fi
#endif
	od
}
