// Compares sums of a peer with acc.hex: ROWS sums of STEPS vectors each, from a.hex and b.hex.
// Macros name the unit, its parameters and these numbers.
module peers_testbench;
    logic [`BITS - 1:0] a_words[0:`ROWS * `STEPS * `VECTOR - 1];
    logic [`BITS - 1:0] b_words[0:`ROWS * `STEPS * `VECTOR - 1];
    logic [23:0] expected[0:`ROWS - 1];

    logic clk = 0;
    logic first;
    logic [`VECTOR * `BITS - 1:0] a, b;
    wire [23:0] acc;
    `UNIT #(`PARAMETERS .ACC_BITS(24), .HEADROOM(4), .VECTOR(`VECTOR)) mac (
        .clk(clk), .first(first), .a(a), .b(b), .acc(acc)
    );

    int differing = 0;
    initial begin
        $readmemh("a.hex", a_words);
        $readmemh("b.hex", b_words);
        $readmemh("acc.hex", expected);
        for (int row = 0; row < `ROWS; row++) begin
            for (int step = 0; step < `STEPS; step++) begin
                first = step == 0;
                for (int i = 0; i < `VECTOR; i++) begin
                    a[i * `BITS +: `BITS] = a_words[(row * `STEPS + step) * `VECTOR + i];
                    b[i * `BITS +: `BITS] = b_words[(row * `STEPS + step) * `VECTOR + i];
                end
                #1 clk = 1;
                #1 clk = 0;
            end
            if (acc !== expected[row]) begin
                differing++;
                if (differing <= 10)
                    $display("differs: row %0d: got %h, expected %h", row, acc, expected[row]);
            end
        end
        $display("%0d of %0d words differ", differing, `ROWS);
        if (differing != 0) $fatal(1, "the accumulators are not those expected");
        $finish;
    end
endmodule
