#!/usr/bin/env perl
# A checker in another language: an answer should not shout.
#
#   llamaduo evaluator add calm
#   llamaduo evaluator run --name calm --exec examples/calm_checker.pl
use strict;
use warnings;
use JSON::PP;

$| = 1;    # a score must leave at once, not when a buffer is full
while (my $line = <STDIN>) {
    my $asked = decode_json($line);
    my $shouts = () = $asked->{answer} =~ /!/g;
    print encode_json({
        id     => $asked->{id},
        value  => $shouts ? 0 : 1,
        reason => $shouts ? "$shouts exclamation marks" : "calm",
    }), "\n";
}
