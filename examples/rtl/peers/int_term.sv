// A product of two's complement numbers, after Baugh and Wooley (IEEE Trans. Computers C-22, 1973).
//
// `a * b` says the same; yosys 0.23 extends signed operands to the product's width and makes of
// it a quarter more transistors, which would flatter the peers.
module int_term #(
    parameter int BITS = 8
) (
    input  logic [BITS - 1:0] a,
    input  logic [BITS - 1:0] b,
    output logic [2 * BITS - 1:0] term
);
    function automatic logic [2 * BITS - 1:0] product_of(
        input logic [BITS - 1:0] a,
        input logic [BITS - 1:0] b
    );
        logic [BITS - 1:0] row;
        product_of = (1 << (2 * BITS - 1)) + (1 << BITS);
        for (int i = 0; i < BITS; i++) begin
            // Bits with the weight of exactly one sign are inverted.
            row = (a & {BITS{b[i]}}) ^ (1 << (BITS - 1));
            if (i == BITS - 1) row = ~row;
            product_of = product_of + (row << i);
        end
    endfunction

    assign term = product_of(a, b);
endmodule
