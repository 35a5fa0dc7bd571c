/* A list whose members carry their own links: members come and go in O(1), and nothing is allocated. */
#ifndef SEALSVC_BASE_LIST_H
#define SEALSVC_BASE_LIST_H

#include <stddef.h>

/* A member's link, or the list itself. */
struct list {
	struct list *next, *before;
};

/* The structure of this type whose field `member` is at `link`. */
#define CONTAINER_OF(link, type, member) ((type *)((char *)(link)-offsetof(type, member)))

/* For each member, which is in the list still when its turn is over. */
#define LIST_EACH(member_at, list, type, member)                                                   \
	for (type *member_at = CONTAINER_OF((list)->next, type, member);                           \
	     &member_at->member != (list);                                                         \
	     member_at = CONTAINER_OF(member_at->member.next, type, member))

/* The first member; NULL: there is none. */
#define LIST_FIRST(list, type, member)                                                             \
	(list_is_empty(list) ? NULL : CONTAINER_OF((list)->next, type, member))

static inline void list_init(struct list *list)
{
	list->next = list->before = list;
}

static inline int list_is_empty(const struct list *list)
{
	return list->next == list;
}

static inline void list_append(struct list *list, struct list *link)
{
	link->next = list;
	link->before = list->before;
	list->before->next = link;
	list->before = link;
}

static inline void list_prepend(struct list *list, struct list *link)
{
	list_append(list->next, link);
}

/* The link is in a list, and in none after that. */
static inline void list_remove(struct list *link)
{
	link->next->before = link->before;
	link->before->next = link->next;
	list_init(link);
}

/* All of `from`, in its order, behind the last of `list`; `from` is empty after that. */
static inline void list_append_all(struct list *list, struct list *from)
{
	if (list_is_empty(from))
		return;
	from->next->before = list->before;
	list->before->next = from->next;
	from->before->next = list;
	list->before = from->before;
	list_init(from);
}

#endif
