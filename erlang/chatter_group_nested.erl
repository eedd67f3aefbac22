%% SPDX-License-Identifier: Apache-2.0
%% @doc Groups as members of groups. No process.
%%
%% Each node refuses to close a cycle, but two nodes may close one together while they cannot hear
%% each other. Then everybody who knows the same statements ignores the same ones: they are taken
%% by age (incarnation, version, node), and one that would close a cycle with those before it does
%% not count for as long as they stand.
-module(chatter_group_nested).

-export([edges/1, closes/3, below/2]).

-type name() :: chatter_group_wire:name().
-type statement() :: {{Parent :: name(), Child :: name(), chatter_group_wire:id()},
                      {Incarnation :: pos_integer(), Version :: pos_integer()}}.
-type edges() :: #{Parent :: name() => [Child :: name()]}.

%% @doc Which groups are in which, without cycles.
-spec edges([statement()]) -> edges().
edges(Statements) ->
    Aged = lists:sort([{At, Id, Parent, Child} || {{Parent, Child, Id}, At} <- Statements]),
    lists:foldl(fun({_, _, Parent, Child}, Edges) ->
                        case closes(Parent, Child, Edges) of
                            true -> Edges;
                            false -> add(Parent, Child, Edges)
                        end
                end, #{}, Aged).

add(Parent, Child, Edges) ->
    Edges#{Parent => lists:usort([Child | maps:get(Parent, Edges, [])])}.

%% @doc Whether a group contains itself when `Child' is in `Parent'.
-spec closes(name(), name(), edges()) -> boolean().
closes(Parent, Child, Edges) ->
    lists:member(Parent, below(Child, Edges)).

%% @doc A group and all that are in it, near or far, each once.
-spec below(name(), edges()) -> [name()].
below(Group, Edges) -> below([Group], Edges, #{}).

below([Group | Groups], Edges, Seen) when is_map_key(Group, Seen) ->
    below(Groups, Edges, Seen);
below([Group | Groups], Edges, Seen) ->
    below(maps:get(Group, Edges, []) ++ Groups, Edges, Seen#{Group => true});
below([], _, Seen) -> lists:sort(maps:keys(Seen)).
