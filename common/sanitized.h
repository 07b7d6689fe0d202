// Whether this is a build with AddressSanitizer: GCC and clang say it in different ways. The sanitizer needs
// descriptors, memory and system calls that a few bounds of ours do not leave it.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define USBLEASE_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define USBLEASE_SANITIZED 1
#endif
#endif
#ifndef USBLEASE_SANITIZED
#define USBLEASE_SANITIZED 0
#endif
