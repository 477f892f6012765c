// SPDX-License-Identifier: GPL-2.0-or-later
/* One. */
int kmem_one(void)
{
	return 1;
}

/* Two. */
int kmem_two(void)
{
	return 2;
}

/* Three. */
int kmem_three(void)
{
	return 3;
}
