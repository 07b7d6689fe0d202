# A guest as small as can be: the first sector of the USB disk that it boots from, and that is passed through to it. It
# reads the second sector again and again, by the BIOS, and says on its serial port how each reading went:
#   R  read, and it is the right sector      S  said to be read, but it is not      E  an error
        .code16
        .globl  _start
_start:
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        movb    %dl, disk
again:
        movl    $0, sector              # or an old reading would look like a new one
        movw    $1, count               # the BIOS writes how many it has read
        movw    $packet, %si
        movb    disk, %dl
        movb    $0x42, %ah
        int     $0x13
        movb    $'E', %al
        jc      say
        movb    $'S', %al
        cmpl    $0x534c4255, sector     # "UBLS"
        jne     say
        movb    $'R', %al
say:
        movw    $0x3f8, %dx
        outb    %al, %dx
        jmp     again

disk:   .byte   0
        .balign 4
packet: .byte   16, 0
count:  .word   1
        .word   sector, 0
        .quad   1

        .org    510
        .word   0xaa55
        .set    sector, _start + 0x1000
